# SPDX-License-Identifier: Apache-2.0
"""The digest of huge inputs: it depends on the content and not on the holes, and differs from any SHA-256."""

import os
from pathlib import Path

import pytest

from sevsnp.pipeline.checker import Sha256Checker
from sevsnp.store import digests
from sevsnp.store.digests import Index
from sevsnp.store.sparse_digest import LARGE, sparse_digest

MIB = 1 << 20
TIB = 1 << 40


def huge(path: Path, size: int, *parts: tuple[int, bytes]) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
        for place, data in parts:
            stream.seek(place)
            stream.write(data)
    return path


def test_a_sparse_file_of_two_tib_is_digested(tmp_path: Path) -> None:
    """Reading all of it would take half an hour."""
    index = Index(tmp_path / "db")
    disk = huge(tmp_path / "disk", 2 * TIB, (0, b"start"), (TIB + 12345, b"data"), (2 * TIB - 3, b"end"))
    found = index.input(disk)
    assert found.startswith("sparse-1:") and len(found) == len("sparse-1:") + 64
    index.close()
    assert Index(tmp_path / "db").input(disk) == found == sparse_digest(disk)
    assert Sha256Checker().get_state(str(disk), None) == found
    with disk.open("r+b") as stream:
        stream.seek(TIB + 12345)
        stream.write(b"DATA")
    assert index.input(disk) != found


def test_holes_do_not_count(tmp_path: Path) -> None:
    """Written zeros, holes that begin anywhere, and a last piece that is not whole."""
    content = bytearray(5 * MIB + 77)
    content[MIB + 5 : MIB + 9] = b"here"
    content[-2:] = b"zz"
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    dense.write_bytes(content)
    huge(sparse, len(content), (MIB + 5, b"here"), (len(content) - 2, b"zz"))
    assert sparse.stat().st_blocks < dense.stat().st_blocks
    assert sparse_digest(dense) == sparse_digest(sparse)


def test_content_and_size_change_the_digest(tmp_path: Path) -> None:
    made = [
        huge(tmp_path / "a", 4 * MIB, (0, b"x")),
        huge(tmp_path / "b", 4 * MIB, (MIB, b"x")),
        huge(tmp_path / "c", 4 * MIB + 1, (0, b"x")),
        huge(tmp_path / "d", 4 * MIB, (0, b"x"), (4 * MIB - 1, b"x")),
        huge(tmp_path / "e", 4 * MIB),
        huge(tmp_path / "f", 0),
    ]
    assert len({sparse_digest(path) for path in made}) == len(made)


def test_only_the_size_decides_between_the_two_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So an earlier record with a SHA-256 is never used for a huge file: the file is read once more."""
    disk = huge(tmp_path / "disk", 2 * MIB, (5, b"x"))
    old = os.stat(disk).st_ctime_ns
    index = Index(tmp_path / "db")
    index.note(disk, "0" * 64)
    assert index.input(disk) == "0" * 64  # control: below the limit the record holds
    monkeypatch.setattr(digests, "LARGE", 2 * MIB)
    assert index.input(disk) == sparse_digest(disk) and index.file(disk) == "0" * 64
    assert Sha256Checker().check_modified(str(disk), disk.stat(), "0" * 64)
    assert disk.stat().st_ctime_ns == old and LARGE > 1 << 33
