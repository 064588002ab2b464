# SPDX-License-Identifier: Apache-2.0
"""Debian packages: where they come from, which ones, at which digest, and what is unpacked from them."""

from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
