# SPDX-License-Identifier: Apache-2.0
"""QEMU: its command line and process, its block devices, what it may do, and the platforms it runs on."""
