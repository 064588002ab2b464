# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevsnp.errors import UserError
from sevsnp.measurement.ovmf import Ovmf, SectionKind, read_firmware
from tests.support.evidence import (
    HASH_TABLE,
    METADATA,
    REAL_FIRMWARE,
    RESET_BLOCK,
    SECTIONS,
    VECTORS,
    firmware,
    needs_vectors,
    table_entry,
)


def read(image: bytes) -> Ovmf:
    return read_firmware(io.BytesIO(image), len(image), "a.fd")


def test_tables_are_read() -> None:
    info = read(firmware())
    assert (info.hash_table_address, info.hash_table_size, info.reset_eip) == (0x810C00, 0x400, 0x80B004)
    assert (info.hash_page_address, info.hash_page_offset) == (0x810000, 0xC00)
    assert info.address == (1 << 32) - 0x4000
    assert [(one.address, one.size, int(one.kind)) for one in info.sections] == list(SECTIONS)


def test_entries_and_sections_may_have_any_order() -> None:
    entries = [
        table_entry(RESET_BLOCK, struct.pack("<I", 0x80B004)),
        table_entry("11111111-2222-3333-4444-555555555555", b"something newer"),
        table_entry(METADATA, struct.pack("<I", 0x800)),
        table_entry(HASH_TABLE, struct.pack("<II", 0x810C00, 0x400)),
    ]
    info = read(firmware(sections=SECTIONS[::-1], entries=entries))
    assert [section.address for section in info.sections] == [section[0] for section in SECTIONS[::-1]]


def entries_without(guid: str) -> list[bytes]:
    all_entries = {
        METADATA: struct.pack("<I", 0x800),
        HASH_TABLE: struct.pack("<II", 0x810C00, 0x400),
        RESET_BLOCK: struct.pack("<I", 0x80B004),
    }
    return [table_entry(key, data) for key, data in all_entries.items() if key != guid]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (firmware(sections=SECTIONS[:-1]), "no SNP kernel-hashes section: not an AmdSev build"),
        (firmware(entries=entries_without(HASH_TABLE)), "not an AmdSev build"),
        (firmware(entries=entries_without(METADATA)), "not an AmdSev build"),
        (firmware(entries=entries_without(RESET_BLOCK)), "no SEV-ES reset block"),
        (firmware(entries=entries_without("") * 2), "two entries"),
        (firmware(entries=[b"xyz", *entries_without("")]), "left over"),
        (firmware(entries=[*entries_without(METADATA), table_entry(METADATA, b"\0")]), "expected 4"),
        (firmware(entries=[*entries_without(METADATA), table_entry(METADATA, b"\xff" * 4)]), "outside the image"),
        (firmware(entries=[*entries_without(METADATA), table_entry(METADATA, bytes(4))]), "outside the image"),
        (firmware(sections=(*SECTIONS, (0x900000, 0x1000, 5))), "unknown kind 0x5"),
        (firmware(sections=(*SECTIONS, (0x900001, 0x1000, 1))), "whole pages"),
        (firmware(sections=(*SECTIONS, (0x900000, 0, 1))), "whole pages"),
        (firmware(sections=(*SECTIONS, (0x800000, 0x1000, 1))), "overlap"),
        (firmware(sections=(*SECTIONS, (0xFFFFF000, 0x1000, 1))), "overlap"),
        (firmware(sections=(*SECTIONS, (0x900000, 0x1000, 0x10))), "inside one kernel-hashes page"),
        (firmware(sections=(*SECTIONS, (0x1000000, 0xE0000000, 1))), "more than"),
        (firmware(hash_area=(0, 0)), "inside one kernel-hashes page"),
        (firmware(hash_area=(0x810C00, 0x401)), "inside one kernel-hashes page"),
        (firmware()[:-1], "expected a multiple of 4096"),
        (b"", "expected a multiple of 4096"),
        (bytes(4096), "no OVMF footer table"),
    ],
)
def test_wrong_tables_are_refused_by_name(image: bytes, words: str) -> None:
    read(firmware())  # control
    with pytest.raises(UserError, match=words) as caught:
        read(image)
    assert "a.fd" in caught.value.message


def test_an_unreadable_file_is_named() -> None:
    with pytest.raises(UserError, match=r"/nowhere.fd: cannot read"):
        Ovmf.read(REAL_FIRMWARE.parent / "nowhere.fd")


TABLES = 0x800


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, TABLES - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_hostile_tables_never_give_a_traceback(edits: list[tuple[int, int]]) -> None:
    image = bytearray(firmware())
    for offset, value in edits:
        image[len(image) - TABLES + offset] = value
    with contextlib.suppress(UserError):
        read(bytes(image))


@pytest.mark.skipif(not REAL_FIRMWARE.exists(), reason="no AmdSev firmware here")
def test_real_firmware() -> None:
    info = Ovmf.read(REAL_FIRMWARE)
    assert info.hash_table_address == 0x810C00
    assert SectionKind.SVSM_CAA in {section.kind for section in info.sections}


@needs_vectors
def test_vectors() -> None:
    Ovmf.read(VECTORS / "idblock" / "ovmf_AmdSev_suffix.bin")
    with pytest.raises(UserError, match="not an AmdSev build"):
        Ovmf.read(VECTORS / "idblock" / "ovmf_OvmfX64_suffix.bin")
