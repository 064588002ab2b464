# SPDX-License-Identifier: Apache-2.0
"""The headers of a stage's file, as far as its readers need them.

A module apart from those that make the file: what only starts a kernel does not depend on the ACPI tables.
"""

import struct

# The place of the PE header, behind the kernel's setup header; the sections' names in their order.
PE = 0x288
NAMES = (b".text", b".carried", b".acpi", b".linux")
# Bytes of signature and COFF header, of the optional header, and of a section's header.
_BEFORE, _OPTIONAL, _SECTION = 24, 240, 40


def linux_of(stage: bytes) -> bytes:
    """The kernel in a stage; ``stage`` itself if it is no stage."""
    headers = PE + _BEFORE + _OPTIONAL
    places = [headers + _SECTION * number for number in range(len(NAMES))]
    if len(stage) < places[-1] + _SECTION:
        return stage
    if any(stage[place : place + 8] != name.ljust(8, b"\0") for place, name in zip(places, NAMES, strict=True)):
        return stage
    size, _, _, place = struct.unpack_from("<IIII", stage, places[-1] + 8)
    return stage[place : place + size]
