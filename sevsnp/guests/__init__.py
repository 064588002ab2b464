# SPDX-License-Identifier: Apache-2.0
"""The user's commands for guests on this machine: attest, status, detach, log in, stop."""
