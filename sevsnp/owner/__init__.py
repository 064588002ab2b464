# SPDX-License-Identifier: Apache-2.0
"""The owner's side of attestation: ask for evidence, verify it, keep it, and only then log in or release a key."""
