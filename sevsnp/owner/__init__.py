# SPDX-License-Identifier: Apache-2.0
"""What the owner runs: ask for evidence, verify it, keep it, and only then log in or release a key."""
