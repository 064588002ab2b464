# SPDX-License-Identifier: Apache-2.0
"""The remembered index of a tar: it is that of the present archive, and it is complete."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Entry, Kind, read_tar
from sevsnp.archives.tar_writer import write_tar
from sevsnp.errors import UserError
from sevsnp.images import known_tar
from sevsnp.images.known_tar import read_known_tar
from sevsnp.store import session

EPOCH = 1_700_000_000
CAPABILITY = bytes.fromhex("0100000200240000000000000000000000000000")


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The archives that were read header by header, one after the other, with an index that is kept on disk."""
    read: list[Path] = []

    def noted(path: Path) -> dict[str, Entry]:
        read.append(path)
        return read_tar(path)

    monkeypatch.setattr(known_tar, "read_tar", noted)
    monkeypatch.setattr(session, "_options", [session.Options(tmp_path / "cache")])
    session.index.cache_clear()
    yield read
    session.index().close()
    session.index.cache_clear()


def later_run() -> None:
    """What another process finds is what was written."""
    session.index().close()
    session.index.cache_clear()


def archive(path: Path, text: str = "content") -> Path:
    first = text_entry("a/file", text)
    entries = [
        directory_entry(""),
        directory_entry("a", 0o2750, 5, 6),
        first,
        Entry("a/linked", Kind.FILE, 0o644, content=first.content),
        link_entry("a/link", "file"),
        Entry("a/capable", Kind.FILE, 0o755, content=text_entry("c", "x").content, capability=CAPABILITY),
        Entry("null", Kind.CHARACTER, 0o666, device=(1, 3)),
        Entry("fifo", Kind.FIFO, 0o600),
        text_entry("empty-ä-\udcff", "", uid=1 << 22),
    ]
    write_tar(entries, path, epoch=EPOCH)
    return path


def same(path: Path) -> None:
    known, plain = read_known_tar(path), read_tar(path)
    assert known == plain and list(known) == list(plain)
    for name, entry in known.items():
        assert (entry.content is None) == (plain[name].content is None)
        if entry.content and (other := plain[name].content):
            assert b"".join(entry.content.pieces()) == b"".join(other.pieces())


def test_the_remembered_index_equals_the_read_one(tmp_path: Path, reads: list[Path]) -> None:
    path = archive(tmp_path / "a.tar")
    for _ in range(3):
        same(path)
        later_run()
    assert reads == [path]
    # By content, wherever it lies; the entries are of the archive that was asked for.
    other = Path(shutil.copyfile(path, tmp_path / "b.tar"))
    same(other)
    assert reads == [path]


def test_sparse_files_and_attributes_are_remembered_too(tmp_path: Path, reads: list[Path]) -> None:
    with (tmp_path / "sparse").open("wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"end")
    try:
        os.setxattr(tmp_path / "sparse", "user.note", b"text")
    except OSError:
        pytest.skip("the file system has no extended attributes")
    path = tmp_path / "a.tar"
    words = ["tar", "-C", str(tmp_path), "--format=pax", "--sparse", "--xattrs", "-cf", str(path), "sparse"]
    subprocess.run(words, check=True)
    for _ in range(2):
        same(path)
        later_run()
    entry = read_known_tar(path)["sparse"]
    assert entry.content and entry.content.sparse and entry.attributes == ("user.note",)
    assert reads == [path]


def test_a_changed_archive_is_read_anew(tmp_path: Path, reads: list[Path]) -> None:
    path = archive(tmp_path / "a.tar")
    same(path)
    status = path.stat()
    archive(path, "another")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    same(path)
    content = read_known_tar(path)["a/file"].content
    assert content and content.read() == b"another"
    assert reads == [path, path]


def test_an_archive_that_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "a.tar")
    (tmp_path / "same").write_bytes(path.read_bytes())

    def changing(path: Path) -> dict[str, Entry]:
        found = read_tar(path)
        archive(path, "another text")
        return found

    with monkeypatch.context() as patch, pytest.raises(UserError, match="changed while it was read"):
        patch.setattr(known_tar, "read_tar", changing)
        read_known_tar(path)
    # Neither under the old digest nor under the new one.
    same(path)
    same((tmp_path / "same").rename(path))
    assert reads == [path, path]


def test_a_file_that_is_not_an_archive_is_refused_as_by_the_plain_reader(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "text").write_text("no archive" * 100)
    for path in (tmp_path / "text", tmp_path / "missing", tmp_path):
        with pytest.raises(UserError) as plain:
            read_tar(path)
        with pytest.raises(UserError) as known:
            read_known_tar(path)
        assert str(known.value) == str(plain.value)
    same(archive(tmp_path / "a.tar"))  # the control
