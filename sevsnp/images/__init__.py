# SPDX-License-Identifier: Apache-2.0
"""File systems, disk images and initramfs layers, made without root."""
