# SPDX-License-Identifier: Apache-2.0
"""The stage: an EFI program with ACPI tables of our own and the kernel, which the firmware starts in its place."""
