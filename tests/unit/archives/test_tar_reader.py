# SPDX-License-Identifier: Apache-2.0
"""Hostile tars: every reader of an archive ends with one UserError, soon and with little memory."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sevsnp.archives.plain_tar import plain_members
from sevsnp.archives.tar import read_tar
from sevsnp.archives.tar_reader import streamed
from sevsnp.archives.ustar import member, record
from sevsnp.containers.form import Form, given
from sevsnp.errors import UserError
from sevsnp.packages.archive import Archive
from sevsnp.packages.kernel import unpack_kernel
from sevsnp.packages.release_archive import unpack_release
from sevsnp.packages.unpack import unpack_deb
from tests.support.debian_repository import deb_of

END = bytes(1024)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """One header block; a size that octal digits cannot say is in base 256."""
    mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    if 0 <= size < 8**11:
        return member(name.encode(), kind, mode=mode, uid=0, gid=0, size=size, mtime=0, link=link.encode())
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, size, link, mode
    return info.tobuf(tarfile.GNU_FORMAT)


def blocks(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(**records: str) -> bytes:
    """A header of records; ``__`` in a key is a dot."""
    text = b"".join(record(key.replace("__", ".").encode(), value.encode()) for key, value in records.items())
    return header("x", len(text), tarfile.XHDTYPE) + blocks(text)


def _read_tar(folder: Path, data: bytes) -> None:
    (folder / "a.tar").write_bytes(data)
    read_tar(folder / "a.tar")


def _read_mirror(folder: Path, data: bytes) -> None:
    (folder / "sources.tar").write_bytes(data)
    Archive(folder / "sources.tar")


def _unpack_deb(folder: Path, data: bytes) -> None:
    unpack_deb(deb_of(folder / "a.deb", data), folder)


def _unpack_kernel(folder: Path, data: bytes) -> None:
    unpack_kernel(deb=deb_of(folder / "a.deb", data), output=folder / "kernel")


def _unpack_release(folder: Path, data: bytes) -> None:
    packed = gzip.compress(data)
    (folder / "a.tar.gz").write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    unpack_release(archive=folder / "a.tar.gz", sha256=digest, output=folder / "release")


READERS = (_read_tar, _read_mirror, _unpack_deb, _unpack_kernel, _unpack_release)
Reader = Callable[[Path, bytes], None]

# The second header leads back to the first one.
BACK = {
    "in base 256": header("snp-release", kind=tarfile.DIRTYPE) + header("snp-release/x", -1536),
    "in a record": header("snp-release", kind=tarfile.DIRTYPE) + pax(size="-2048") + header("snp-release/x"),
    "of a hole": pax(GNU__sparse__map="0,1", GNU__sparse__size="-1") + header("snp-release/x", 1) + blocks(b"x"),
    "of records": header("snp-release/x", -512, tarfile.XHDTYPE),
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """tarfile, which fails after 100 members: a test of an endless archive fails, and does not hang."""
    left, following = [100], tarfile.TarFile.next

    def counting(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        left[0] -= 1
        assert left[0], "the archive is read without end"
        return following(archive)

    monkeypatch.setattr(tarfile.TarFile, "next", counting)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("form", BACK)
@pytest.mark.parametrize("reader", READERS)
def test_a_negative_size_is_refused(tmp_path: Path, reader: Reader, form: str) -> None:
    with pytest.raises(UserError, match=r"found a header with -\d+ bytes|not a plain tar archive"):
        reader(tmp_path, BACK[form] + END)


@pytest.mark.usefixtures("counted")
def test_sizes_in_base_256_and_in_records_are_read(tmp_path: Path) -> None:
    """The control: the same forms with an honest size."""
    base = header("a", 3)
    field = b"\x80" + (3).to_bytes(11, "big")
    block = base[:124] + field + base[136:148] + b" " * 8 + base[156:]
    block = block[:148] + b"%06o\0 " % sum(block) + block[156:]
    records = pax(size="2", GNU__sparse__name="b") + header("b", 7)
    (tmp_path / "a.tar").write_bytes(block + blocks(b"abc") + records + blocks(b"de") + END)
    found = read_tar(tmp_path / "a.tar")
    assert {name: each.content and each.content.read() for name, each in found.items()} == {"a": b"abc", "b": b"de"}


@pytest.mark.parametrize(
    ("parts", "taken"),
    [
        ("0,1,8,1,9,0", True),
        ("0,0,3,2,9,0", True),
        ("8,1,0,1", False),
        ("8,2", False),
        ("3,-1", False),
        ("-1,1", False),
    ],
)
def test_the_map_of_a_sparse_file_is_in_order_and_inside_of_it(tmp_path: Path, parts: str, taken: bool) -> None:
    data = pax(GNU__sparse__map=parts, GNU__sparse__size="9") + header("x", 2) + blocks(b"ab") + END
    if taken:
        return _read_tar(tmp_path, data)
    with pytest.raises(UserError, match=r"in the map of a file of 9 bytes"):
        _read_tar(tmp_path, data)
    return None


def sparse_block(more: int) -> bytes:
    """A header of the oldest sparse format; with ``more``, blocks of its map follow."""
    block = header("x", kind=tarfile.GNUTYPE_SPARSE)
    block = block[:148] + b" " * 8 + block[156:482] + bytes([more]) + b"%011o\0" % 0 + block[495:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


SPARSE = {"GNU__sparse__major": "1", "GNU__sparse__minor": "0"}
ODD = {
    "a chain of records": pax(comment="x") * 1500 + header("x"),
    "a size in words": pax(GNU__sparse__size="abc") + header("x"),
    "a map in words": pax(GNU__sparse__map="a,b") + header("x"),
    "a map before the data in words": pax(**SPARSE) + header("x", 3) + blocks(b"abc"),
    "a map before the data that is cut off": pax(**SPARSE) + header("x", 3) + b"7\n",
    "a map in blocks that is cut off": sparse_block(1),
}


@pytest.mark.parametrize("form", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_damage_of_any_kind_is_one_error(tmp_path: Path, reader: Reader, form: str) -> None:
    with pytest.raises(UserError, match=r"\(.*\)$|damaged|not a plain tar archive") as caught:
        reader(tmp_path, ODD[form])
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("form", ODD)
def test_an_image_with_a_damaged_header_has_a_form(tmp_path: Path, form: str) -> None:
    """Every run asks it, `./doitw list`, too. The control: a header that only a disk's archive has."""
    (tmp_path / "a.tar").write_bytes(ODD[form])
    assert given(str(tmp_path / "a.tar")).form is Form.TAR
    (tmp_path / "a.tar").write_bytes(pax(comment="x") + header("disk.raw") + END)
    assert given(str(tmp_path / "a.tar")).form is Form.DISK_INSIDE


@pytest.mark.parametrize(("time", "taken"), [("5.5", True), ("inf", False), ("nan", False)])
def test_a_time_is_a_number(tmp_path: Path, time: str, taken: bool) -> None:
    data = pax(mtime=time) + header("x") + END
    for reader in (_read_tar, _unpack_deb):
        if taken:
            reader(tmp_path, data)
            continue
        with pytest.raises(UserError, match=r"found a tar archive that is damaged|expected a path below the root"):
            reader(tmp_path, data)


LONG, LOCAL, GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE


@pytest.mark.parametrize(
    ("kinds", "taken"),
    [
        ([LONG], True),
        ([LONG, b"0", LOCAL, b"0"], True),
        ([LONG, LONG], False),
        ([LOCAL, LONG], False),
        ([GLOBAL, b"0", LOCAL], False),
        ([GLOBAL, b"0", GLOBAL, b"0"], False),
    ],
)
@pytest.mark.parametrize("reader", [_read_tar, _read_mirror, _unpack_deb])
def test_all_records_in_memory_together_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Reader, kinds: list[bytes], taken: bool
) -> None:
    """The control: the records of one file do not count for the next one."""
    monkeypatch.setattr("sevsnp.archives.tar_reader.LARGEST_RECORDS", 1000)
    names = {LONG: b"a" * 599 + b"\0", LOCAL: record(b"x", b"y" * 593), GLOBAL: record(b"x", b"y" * 593)}
    if reader is _unpack_deb:
        names[LONG] = b"a/" * 299 + b"a\0"  # a file's name has at most 255 bytes
    data = b"".join(header("x", 600, kind) + blocks(names[kind]) if kind in names else header("x") for kind in kinds)
    if taken:
        return reader(tmp_path, data + header("x") + END)
    with pytest.raises(UserError, match=r"1200 bytes of extended records|not a plain tar archive"):
        reader(tmp_path, data + header("x") + END)
    return None


@pytest.mark.parametrize("reader", READERS)
def test_records_of_any_size_are_not_read_into_memory(tmp_path: Path, reader: Reader) -> None:
    with pytest.raises(UserError, match=r"extended records|found a header with|not a plain tar archive"):
        reader(tmp_path, header("x", (16 << 20) + 1, LONG) + END)


@pytest.mark.parametrize("end", [END, b""])
def test_a_stream_that_claims_more_than_it_has_ends(tmp_path: Path, end: bytes) -> None:
    """A file that nobody reads is skipped. Without the check, 10 KiB at a time, up to the size that it claims."""
    reads = [0]

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reads[0] += 1
            assert reads[0] < 100, "the stream is read without end"
            return super().read(size)

    with streamed(Counted(header("x", 3) + blocks(b"abc") + end)) as archive:
        assert [each.size for each in archive] == [3]
    for size in (1 << 40, 1 << 80):
        reads[0], data = 0, header("x", size) + END
        with pytest.raises(EOFError), streamed(Counted(data)) as archive:
            archive.getmembers()
    with pytest.raises(UserError, match="damaged package"):
        unpack_deb(deb_of(tmp_path / "a.deb", header("x", 1 << 80) + END), tmp_path, lambda path: False)


@pytest.mark.parametrize("kind", [b"0", tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("plain", [True, False])
def test_names_and_targets_have_a_length_that_the_kernel_takes(tmp_path: Path, kind: bytes, plain: bool) -> None:
    """In both readers of tars. The control: the longest path; of a hard link, it names the file before it."""
    for length in (4096, 4097):
        path = "ä/" * (length // 3) + "a" * (length % 3)
        file = pax(path=path) + header("x")
        data = file if kind == b"0" else (file if length == 4096 else b"") + pax(linkpath=path) + header("l", 0, kind)
        data = (b"" if plain else pax(comment="x") + header("first")) + data + END
        if length == 4096:
            _read_tar(tmp_path, data)
            assert (plain_members(tmp_path / "a.tar") is not None) is plain
            continue
        with pytest.raises(UserError, match=r"found a path of 4097 bytes \(.*\), expected at most 4096"):
            _read_tar(tmp_path, data)


@pytest.mark.parametrize("plain", [True, False])
def test_entries_are_counted_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """The control: as many entries as are taken. One name that comes often counts as often."""
    monkeypatch.setattr("sevsnp.archives.tar.MOST_ENTRIES", 5)
    start = b"" if plain else pax(comment="x")
    _read_tar(tmp_path, start + header("x") * 5 + END)
    assert (plain_members(tmp_path / "a.tar") is not None) is plain
    assert plain_members(tmp_path / "a.tar", 4) is None
    with pytest.raises(UserError, match="more than 5 entries in the archive"):
        _read_tar(tmp_path, start + header("x") * 6 + END)
