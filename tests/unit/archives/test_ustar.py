# SPDX-License-Identifier: Apache-2.0
"""The tar headers that the library and the appliance write: Python's tarfile reads the same values."""

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from sevsnp.archives import ustar
from sevsnp.archives.rootfs import directory_entries
from sevsnp.archives.tar import read_tar
from sevsnp.archives.tar_writer import write_tar
from tests.support.evidence import load_script

PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("uid", "size", "name", "link", "records"),
    [
        (0, 0, "a", "", set()),
        ((1 << 21) - 1, (1 << 33) - 1, "a" * 100, "b" * 100, set()),
        (1 << 21, 1 << 33, "a" * 101, "b" * 101, {"uid", "gid", "size", "path", "linkpath"}),
        (4_000_000_000, 1 << 40, "ä" * 60, "ö" * 60, {"uid", "gid", "size", "path", "linkpath"}),
    ],
)
def test_a_member(uid: int, size: int, name: str, link: str, records: set[str]) -> None:
    data = ustar.member(
        name.encode(), b"0", mode=0o4755, uid=uid, gid=uid, size=size, mtime=1 << 32, link=link.encode(), device=(8, 1)
    )
    assert len(data) % ustar.BLOCK == 0
    with tarfile.open(fileobj=io.BytesIO(data + bytes(1024)), mode="r:") as archive:
        found = archive.next()
    assert found is not None
    assert (found.name, found.linkname, found.uid, found.gid, found.size) == (name, link, uid, uid, size)
    assert (found.mode, found.mtime, found.devmajor, found.devminor) == (0o4755, 1 << 32, 8, 1)
    assert found.pax_headers.keys() == records


def test_extra_records_stand_before_or_after_our_own() -> None:
    a, b = ustar.record(b"SCHILY.xattr.a", b"1"), ustar.record(b"SCHILY.xattr.b", b"2")
    data = ustar.member(b"x", b"0", mode=0o644, uid=1 << 21, gid=0, size=0, mtime=0, before=a, after=b)
    assert a + ustar.record(b"uid", b"2097152") + b in data
    # A record counts the digits of its own length.
    assert [len(ustar.record(b"k", bytes(n))) for n in (93, 94, 95)] == [99, 101, 102]


def test_the_appliance_and_the_library_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The appliance writes from a mounted filesystem, the library from entries."""
    root = tmp_path / "root"
    (root / ("n" * 90) / ("m" * 90)).mkdir(parents=True)
    (root / "file").write_bytes(b"x" * 700)
    (root / "link").symlink_to("t" * 140)
    monkeypatch.setitem(sys.modules, "ustar", ustar)
    writer = load_script(PROJECT / "initramfs" / "appliance" / "tree_tar.py")
    descriptor = os.open(tmp_path / "theirs.tar", os.O_RDWR | os.O_CREAT)
    tar = writer.TreeTar(descriptor, lambda size: None)
    writer.add_tree(tar, str(root), {}, lambda name, path: "")
    tar.close()
    os.close(descriptor)
    theirs = read_tar(tmp_path / "theirs.tar")
    assert {entry.name for entry in directory_entries(root)} == theirs.keys() - {""}
    write_tar(theirs.values(), tmp_path / "ours.tar", epoch=1 << 33)
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()
