# SPDX-License-Identifier: Apache-2.0
"""QEMU: its command line and process, its block devices, its confinement, and the platforms it runs on."""
