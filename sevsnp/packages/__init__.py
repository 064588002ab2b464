# SPDX-License-Identifier: Apache-2.0
"""Debian packages: their archives, the selection, the lock with versions and digests, and unpacking."""

from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
