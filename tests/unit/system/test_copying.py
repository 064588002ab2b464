# SPDX-License-Identifier: Apache-2.0
"""Copies of files: content, permissions and holes."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from sevsnp.system import copying
from sevsnp.system.copying import copy_file

MIB = 1 << 20


def no_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_cloned", lambda source, target: False)


def no_range(*_: object) -> int:
    raise OSError(errno.EXDEV, "across devices")


def sparse(path: Path) -> Path:
    """64 MiB with data at the start, in the middle and right before a hole at the end."""
    with path.open("wb") as stream:
        for place in (0, 30 * MIB + 1, 50 * MIB):
            stream.seek(place)
            stream.write(b"data")
        stream.truncate(64 * MIB)
    return path


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("way", ["as the file system can", "by ranges", "by reading"])
def test_holes_stay_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    source, target = sparse(tmp_path / "a"), tmp_path / "b"
    if way != "as the file system can":
        no_clone(monkeypatch)
    if way == "by reading":
        monkeypatch.setattr(os, "copy_file_range", no_range)
    copy_file(source, target, 0o640)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o7777 == 0o640
    assert used(target) <= used(source) < MIB
    # Control: a plain copy fills them.
    with source.open("rb") as reader, (tmp_path / "c").open("wb") as writer:
        shutil.copyfileobj(reader, writer, MIB)
    assert used(tmp_path / "c") >= 64 * MIB


@pytest.mark.parametrize("size", [0, 1, 4096, MIB + 1])
@pytest.mark.parametrize("by_reading", [False, True])
def test_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, by_reading: bool) -> None:
    no_clone(monkeypatch)
    if by_reading:
        monkeypatch.setattr(os, "copy_file_range", no_range)
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    copy_file(tmp_path / "a", tmp_path / "b", 0o444)
    assert (tmp_path / "b").read_bytes() == data


def test_a_file_that_is_one_hole_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_clone(monkeypatch)
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 8 * MIB)
    copy_file(tmp_path / "a", tmp_path / "b", 0o644)
    assert ((tmp_path / "b").stat().st_size, used(tmp_path / "b")) == (8 * MIB, 0)


def test_another_file_system(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not os.access(elsewhere, os.W_OK) or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    target = elsewhere / f"copying-{os.getpid()}"
    try:
        copy_file(sparse(tmp_path / "a"), target, 0o600)
        assert target.read_bytes() == (tmp_path / "a").read_bytes()
        assert used(target) < MIB
    finally:
        target.unlink(missing_ok=True)


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "victim").write_bytes(b"old")
    (tmp_path / "b").symlink_to("victim")
    for target in ("b", "victim"):
        with pytest.raises(FileExistsError):
            copy_file(tmp_path / "a", tmp_path / target, 0o644)
    assert (tmp_path / "victim").read_bytes() == b"old"


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_clone(monkeypatch)
    (tmp_path / "a").write_bytes(b"x" * MIB)
    real = os.copy_file_range

    def shortened(source: int, target: int, count: int, *places: int) -> int:
        os.truncate(tmp_path / "a", 10)
        return real(source, target, min(count, 4096), *places)

    monkeypatch.setattr(os, "copy_file_range", shortened)
    with pytest.raises(OSError, match="shorter"):
        copy_file(tmp_path / "a", tmp_path / "b", 0o644)
