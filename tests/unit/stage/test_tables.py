# SPDX-License-Identifier: Apache-2.0
"""The ACPI tables of the stage, read back according to the specification (ACPI 6.5, chapter 5)."""

import hashlib
import struct
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.stage import tables
from sevsnp.stage.tables import ADDRESS, MAX_VCPUS, all_tables, check_vcpus, fadt, madt, make_tables

COUNTS = (1, 2, 4, 63, MAX_VCPUS)


def at(content: bytes, address: int, base: int = ADDRESS) -> bytes:
    """The table at an address: its length stands in its bytes 4 to 7."""
    place = address - base
    return content[place : place + int.from_bytes(content[place + 4 : place + 8], "little")]


def found(content: bytes, base: int = ADDRESS) -> dict[bytes, bytes]:
    """Every table that the kernel reaches from the RSDP, by signature."""
    (address,) = struct.unpack_from("<Q", content, 24)
    xsdt = at(content, address, base)
    pointers = struct.unpack_from(f"<{(len(xsdt) - 36) // 8}Q", xsdt, 36)
    result = {table[:4]: table for table in (xsdt, *(at(content, each, base) for each in pointers))}
    facp = result[b"FACP"]
    facs, dsdt = struct.unpack_from("<II", facp, 36)
    assert struct.unpack_from("<QQ", facp, 132) == (0, dsdt)
    return {**result, b"FACS": at(content, facs, base), b"DSDT": at(content, dsdt, base)}


def processors(madt: bytes) -> list[int]:
    """The APIC IDs of the enabled processors."""
    place, ids = 44, []
    while place < len(madt):
        kind, size = madt[place], madt[place + 1]
        if kind == 0:
            uid, apic, flags = struct.unpack_from("<BBI", madt, place + 2)
            assert (uid, flags) == (apic, 1)
            ids.append(apic)
        place += size
    assert place == len(madt)
    return ids


@pytest.mark.parametrize("vcpus", COUNTS)
@pytest.mark.parametrize("base", [ADDRESS, 0x1000])
def test_every_table_is_referenced_and_complete(vcpus: int, base: int) -> None:
    content = all_tables(vcpus, base)
    assert content[:8] == b"RSD PTR " and content[15] == 2
    assert sum(content[:20]) % 256 == sum(content[:36]) % 256 == 0
    reached = found(content, base)
    assert set(reached) == {b"XSDT", b"FACP", b"APIC", b"FACS", b"DSDT"}
    for signature, table in reached.items():
        assert signature == b"FACS" or sum(table) % 256 == 0, signature
    (facs,) = struct.unpack_from("<I", reached[b"FACP"], 36)
    assert facs % 64 == 0 and len(reached[b"FACS"]) == 64


@pytest.mark.parametrize("vcpus", COUNTS)
def test_the_madt_has_each_vcpu_once(vcpus: int) -> None:
    assert processors(found(all_tables(vcpus))[b"APIC"]) == list(range(vcpus))


def test_only_the_madt_depends_on_the_number_of_vcpus() -> None:
    one, many = found(all_tables(1)), found(all_tables(MAX_VCPUS))
    assert {name for name in one if one[name] != many[name]} == {b"APIC"}


def test_apic_ids_that_need_other_structures_are_refused() -> None:
    assert processors(madt(255)) == list(range(255))
    for count in (0, 256, 1024):
        with pytest.raises(ValueError, match="APIC ID"):
            madt(count)


def test_the_fadt_has_the_size_and_the_hardware_of_its_revision() -> None:
    table = fadt(0x1000, 0x2000)
    assert len(table) == 276 and (table[8], table[131]) == (6, 5)
    (sci,), smi, enable = struct.unpack_from("<H", table, 46), table[48:52], table[52:56]
    assert sci == 9 and not any(smi + enable)  # no port of system management
    assert struct.unpack_from("<8I", table, 56) == (0x600, 0, 0x604, 0, 0, 0x608, 0, 0)
    assert struct.unpack_from("<8B", table, 88) == (4, 2, 0, 4, 0, 0, 0, 0)  # no general-purpose events
    assert table[116:129] == struct.pack("<BBBBQB", 1, 8, 0, 1, 0xCF9, 0x0F)
    # The registers say the same as the older blocks.
    for place, port, size in ((148, 0x600, 4), (172, 0x604, 2), (208, 0x608, 4)):
        space, width, _, _, address = struct.unpack_from("<BBBBQ", table, place)
        assert (space, width, address) == (1, 8 * size, port)


def test_the_dsdt_equals_that_of_the_reference_compiler() -> None:
    """Compiled from the source in tests/pipeline/test_stage.py, which contains constants only."""
    assert hashlib.sha256(tables.dsdt()[36:]).hexdigest() == (
        "10bb0f1ef1c8db836e9f744b57c6913784a24c439e344da1f92a778f6c7afc5b"
    )


@pytest.mark.parametrize("vcpus", [0, MAX_VCPUS + 1, 255])
def test_other_numbers_of_vcpus_are_refused(vcpus: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"CPUS={vcpus}: .* 1 to 64"):
        check_vcpus(vcpus)
    with pytest.raises(UserError, match=f"CPUS={vcpus}: .* 1 to 64"):
        make_tables(vcpus=vcpus, output=tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_the_file_contains_these_tables(tmp_path: Path) -> None:
    make_tables(vcpus=2, output=tmp_path / "tables")
    assert (tmp_path / "tables").read_bytes() == all_tables(2)
