"""Debian packages: where they come from, which ones, at which digest, and what is unpacked from them."""
