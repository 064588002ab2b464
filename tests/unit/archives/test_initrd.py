# SPDX-License-Identifier: Apache-2.0
"""Initrds of distributions: joined archives in every compression that the kernel reads, and damaged initrds."""

import bz2
import gzip
import io
import lzma
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from sevsnp.archives import initrd as module
from sevsnp.archives.cpio import write_cpio
from sevsnp.archives.initrd import read_initrd
from sevsnp.archives.lz4 import MAGIC, unpack_block
from sevsnp.archives.rootfs import directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Entry, Kind
from sevsnp.errors import UserError


def archive(*entries: Entry) -> bytes:
    stream = io.BytesIO()
    write_cpio(entries, stream)
    return stream.getvalue()


def lz4_block(data: bytes) -> bytes:
    """A block with a match wherever four bytes come again, also one that reaches into itself."""
    found, place, literals = bytearray(), 0, bytearray()

    def sequence(match: int) -> None:
        high, low = min(len(literals), 15), min(max(match - 4, 0), 15)
        found.append(high << 4 | low)
        if high == 15:
            found.extend(b"\xff" * ((len(literals) - 15) // 255) + bytes([(len(literals) - 15) % 255]))
        found.extend(literals)
        literals.clear()

    while place < len(data):
        back = data.rfind(data[place : place + 4], max(0, place - 65535), place + 3) if place + 4 < len(data) else -1
        if 0 <= back < place:
            length = 4
            while place + length < len(data) - 1 and data[back + length] == data[place + length]:
                length += 1
            sequence(length)
            found += (place - back).to_bytes(2, "little")
            if length - 4 >= 15:
                found.extend(b"\xff" * ((length - 19) // 255) + bytes([(length - 19) % 255]))
            place += length
        else:
            literals.append(data[place])
            place += 1
    sequence(0)
    return bytes(found)


def lz4(data: bytes) -> bytes:
    half = len(data) // 2
    blocks = (lz4_block(part) for part in (data[:half], data[half:]))
    return MAGIC + b"".join(len(block).to_bytes(4, "little") + block for block in blocks)


FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": zstandard.ZstdCompressor(level=3).compress,
    "lz4": lz4,
}
ENTRIES = (
    directory_entry("usr"),
    text_entry("usr/file", b"content " * 2000, 0o4755),
    link_entry("link", "usr/file"),
    Entry("null", Kind.CHARACTER, 0o666, device=(1, 3)),
    Entry("pipe", Kind.FIFO, 0o600, uid=7, gid=8),
)
EARLY = archive(directory_entry("kernel"), text_entry("kernel/microcode", "m" * 999))


def read(tmp_path: Path, data: bytes) -> list[Entry]:
    path = tmp_path / "initrd.img"
    path.write_bytes(data)
    return read_initrd(path, tmp_path)


def shown(entry: Entry) -> tuple[object, ...]:
    content = entry.content and b"".join(entry.content.pieces())
    return entry.name, entry.kind, entry.mode, entry.uid, entry.gid, entry.target, entry.device, content


@pytest.mark.parametrize("form", FORMATS)
def test_initrds_in_the_three_usual_structures_are_read(tmp_path: Path, form: str) -> None:
    """Microcode in front, padding, the main archive, and another archive behind it in the same compression."""
    packed = FORMATS[form]
    more = packed(archive(text_entry("more", "x")) + bytes(1000) + archive(text_entry("last", "y")))
    padding = bytes(-len(packed(archive(*ENTRIES))) % 4 + 4)
    found = read(tmp_path, EARLY + bytes(512) + packed(archive(*ENTRIES)) + padding + more + bytes(7))
    assert [entry.name for entry in found[:2]] == ["kernel", "kernel/microcode"]
    assert [shown(entry) for entry in found[2:7]] == [shown(entry) for entry in ENTRIES]
    assert [entry.name for entry in found[7:]] == ["more", "last"]


@pytest.mark.parametrize("form", FORMATS)
def test_an_initrd_that_is_cut_short_is_refused(tmp_path: Path, form: str) -> None:
    whole = FORMATS[form](archive(*ENTRIES))
    assert len(read(tmp_path, whole)) == 5  # control
    for kept in (7, len(whole) // 3, len(whole) // 2, len(whole) - 600 if form == "plain" else len(whole) - 5):
        with pytest.raises(UserError, match=r"initrd\.img"):
            read(tmp_path, whole[:kept])


def test_damaged_bytes_are_read_or_refused_without_a_traceback(tmp_path: Path) -> None:
    for form in FORMATS.values():
        whole = form(archive(*ENTRIES))
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            damaged = bytearray(whole)
            damaged[place] ^= 0x55
            try:
                found = read(tmp_path, bytes(damaged))
            except UserError as error:
                assert "initrd.img" in error.message
            else:
                assert found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty, expected an initrd"),
        (bytes(4096), "empty, expected an initrd"),
        (b"\x04\x22\x4d\x18" + bytes(100), "byte 0: found 04224d180000, expected a cpio archive"),
        (b"070707" + bytes(100), "byte 0: found 303730373037"),
        (b"MZ" + bytes(100), "byte 0: found 4d5a"),
        (EARLY + b"MZ" + bytes(100), f"byte {len(EARLY)}: found 4d5a"),
        (archive(text_entry("a/../../b", "")), "expected a path inside the root"),
        (archive(text_entry("a", ""))[:-1000] + b"070701" + b"G" * 104, "no header of a newc archive"),
        (b"070701" + b"0" * 8 * 11 + b"00002000" + b"0" * 8, "a name of 8192 bytes"),
        (b"070701" + b"0" * 8 * 11 + b"00000003" + b"0" * 8 + b"abc", "a zero byte inside, or without one"),
        (b"070701" + b"0" * 8 + b"0000C1ED" + b"0" * 72 + b"00000002" + b"0" * 8 + b"s\0", "of the type 0o140000"),
        (b"070701" + b"0" * 8 + b"0000A1FF" + b"0" * 32 + b"00002000" + b"0" * 32 + b"00000002" + b"0" * 8 + b"s\0",
         "a link of 8192 bytes"),
        (b"070701" + b"0" * 8 + b"000081A4" + b"0" * 32 + b"F0000000" + b"0" * 32 + b"00000002" + b"0" * 8 + b"s\0",
         "expected 4026531840 bytes"),
        (MAGIC + (4 << 20).to_bytes(4, "little"), "damaged compressed archive: the compressed data ends early"),
        (MAGIC + b"\xff\xff\xff\xff", "found a block of 4294967295 bytes"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_an_initrd_is_refused_with_the_reason(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, data)
    assert words in caught.value.message


def test_all_hard_links_of_a_file_have_its_content(tmp_path: Path) -> None:
    """GNU cpio stores it with the last name, other programs with the first. Control: another inode has its own."""

    def member(name: str, data: bytes, inode: int) -> bytes:
        fields = (inode, stat.S_IFREG | 0o644, 0, 0, 3, 0, len(data), 8, 1, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)

    parts = [("a", b"", 5), ("b", b"", 5), ("c", b"of the last", 5), ("d", b"of the first", 6), ("e", b"", 6)]
    found = read(tmp_path, b"".join(member(*part) for part in parts) + archive())
    texts = {entry.name: entry.content.read() for entry in found if entry.content}
    assert texts == dict.fromkeys("abc", b"of the last") | dict.fromkeys("de", b"of the first")


def test_the_uncompressed_size_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes can decompress to gigabytes of zeros."""
    bomb = gzip.compress(archive(text_entry("zeros", bytes(3 << 20))))
    assert read(tmp_path, bomb)  # control
    monkeypatch.setattr(module, "_MOST_PLAIN", 2 << 20)
    with pytest.raises(UserError, match="when decompressed"):
        read(tmp_path, bomb)


@given(st.binary(max_size=40), st.integers(1, 400))
@example(b"a", 400)
@example(b"abc", 300)
def test_lz4_blocks(pattern: bytes, times: int) -> None:
    data = pattern * times + b"end"
    packed = lz4_block(data)
    assert unpack_block(packed) == data
    assert len(packed) < len(data) or times < 10 or len(pattern) < 2


@given(st.binary(max_size=200))
def test_any_lz4_block_is_unpacked_or_refused(block: bytes) -> None:
    try:
        assert len(unpack_block(block)) <= 8 << 20
    except ValueError as error:
        assert str(error)
