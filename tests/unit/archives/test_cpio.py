# SPDX-License-Identifier: Apache-2.0
"""The cpio archives that the kernel unpacks: names, types, padding, order, and entries that are refused."""

import io
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.errors import UserError
from tests.support.newc import Member, read_newc


def archive(*entries: Entry) -> bytes:
    stream = io.BytesIO()
    write_cpio(entries, stream)
    return stream.getvalue()


def only(data: bytes) -> Member:
    (member,) = read_newc(data)
    return member


def test_entries_of_every_kind_are_read_back() -> None:
    found = read_newc(
        archive(
            directory_entry("dir", 0o1777),
            text_entry("dir/file", "content", 0o4755),
            link_entry("link", "dir/file"),
            Entry("null", Kind.CHARACTER, 0o666, device=(1, 3)),
            Entry("disk", Kind.BLOCK, 0o660, device=(254, 16)),
            Entry("pipe", Kind.FIFO, 0o600),
            Entry("owned", Kind.FILE, 0o640, uid=1000, gid=42, content=Content.literal("owned", b"x")),
        )
    )
    shown = [(m.name, stat.filemode(m.mode), m.data.decode()) for m in found]
    assert shown == [
        ("dir", "drwxrwxrwt", ""),
        ("dir/file", "-rwsr-xr-x", "content"),
        ("link", "lrwxrwxrwx", "dir/file"),
        ("null", "crw-rw-rw-", ""),
        ("disk", "brw-rw----", ""),
        ("pipe", "prw-------", ""),
        ("owned", "-rw-r-----", "x"),
    ]
    assert [m.device for m in found] == [(0, 0)] * 3 + [(1, 3), (254, 16)] + [(0, 0)] * 2
    assert [(m.uid, m.gid) for m in found] == [(0, 0)] * 6 + [(1000, 42)]
    assert [m.links for m in found] == [2] + [1] * 6


def test_an_archive_contains_no_times_and_no_original_inode_numbers() -> None:
    found = read_newc(archive(text_entry("a", b"1"), text_entry("b", b"2")))
    assert {m.mtime for m in found} == {0}
    # Two files of one number would be hard links to the kernel.
    assert [m.inode for m in found] == [1, 2]


@pytest.mark.parametrize("length", range(9))
def test_padding_of_names_and_contents(length: int) -> None:
    name, content = "n" * (length + 1), b"c" * length
    data = archive(text_entry(name, content), text_entry("next", b"!"))
    assert [(m.name, m.data) for m in read_newc(data)] == [(name, content), ("next", b"!")]
    assert len(data) % 512 == 0 and data.rstrip(b"\0").endswith(b"TRAILER!!!")


@given(st.lists(st.tuples(st.text("abc", min_size=1, max_size=12), st.binary(max_size=40)), max_size=8))
def test_any_names_and_contents_are_read_back(files: list[tuple[str, bytes]]) -> None:
    found = read_newc(archive(*(text_entry(name, content) for name, content in files)))
    assert [(m.name, m.data) for m in found] == files


def test_a_name_that_is_not_utf_8_is_kept() -> None:
    assert only(archive(text_entry("grüße", b""))).name == "grüße"


def big(path: Path, offset: int, size: int) -> Entry:
    return Entry("big", Kind.FILE, 0o644, content=Content(size=size, inode=("spool", 0), path=path, offset=offset))


def test_the_content_is_read_from_a_part_of_a_file(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.write_bytes(b"before" + b"x" * 3_000_000 + b"after")
    assert only(archive(big(spool, 6, 3_000_000))).data == b"x" * 3_000_000
    with pytest.raises(UserError, match="spool"):
        archive(big(spool, 3_000_006, 10))


def test_values_too_large_for_the_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="big: found 4294967296 bytes, expected less than 4 GiB"):
        archive(big(tmp_path / "none", 0, 1 << 32))


def test_each_parent_directory_comes_once_before_its_entries() -> None:
    entries = with_parents(
        [text_entry("a/b/c", "1"), directory_entry("a", 0o700), text_entry("a.b", ""), link_entry("a/b/d", "c")]
    )
    assert [(e.name, e.mode) for e in entries] == [
        ("a", 0o700), ("a.b", 0o644), ("a/b", 0o755), ("a/b/c", 0o644), ("a/b/d", 0o777),
    ]  # fmt: skip
    for index, entry in enumerate(entries):
        parent = entry.name.rpartition("/")[0]
        assert not parent or parent in {earlier.name for earlier in entries[:index]}


def test_a_later_entry_replaces_an_earlier_one() -> None:
    (entry,) = with_parents([text_entry("a", "old", 0o600), text_entry("a", "new")])
    assert entry.content and (entry.content.read(), entry.mode) == (b"new", 0o644)


def test_the_order_given_does_not_matter() -> None:
    entries = [text_entry(f"d{n % 3}/f{n}", b"%d" % n) for n in range(12)]
    assert archive(*with_parents(entries)) == archive(*with_parents(reversed(entries)))


def test_joined_archives_are_all_read() -> None:
    joined = archive(text_entry("a", b"1")) + archive(text_entry("a", b"2"), text_entry("b", b"3"))
    assert [(m.name, m.data) for m in read_newc(joined)] == [("a", b"1"), ("a", b"2"), ("b", b"3")]
