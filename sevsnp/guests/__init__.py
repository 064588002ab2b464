# SPDX-License-Identifier: Apache-2.0
"""What a user does with the guests on this machine: attest, look, detach, log in, stop."""
