# SPDX-License-Identifier: Apache-2.0
"""Decompression of untrusted files, and the kind of IMAGE, recognised by its first bytes."""

import bz2
import gzip
import hashlib
import io
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from sevsnp.archives import lz4
from sevsnp.containers.form import Form, given
from sevsnp.containers.unpack import MAGIC_SIZE, _Window, first_bytes, unpack
from sevsnp.errors import UserError
from sevsnp.system.files import CHUNK
from tests.support.container_images import (
    MadeImage,
    archive_of,
    directory,
    docker_files,
    layout_files,
    member,
    tar_bytes,
    write_layout,
)

CONTENT = b"content" * 5000 + bytes(3 << 20) + b"end"
SKIPPED = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"\xffskip"[:5]


def lz4_block(data: bytes) -> bytes:
    """One block of literals alone, with its size."""
    assert len(data) >= 15
    more = len(data) - 15
    block = b"\xf0" + b"\xff" * (more // 255) + bytes([more % 255]) + data
    return len(block).to_bytes(4, "little") + block


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip in members": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "xz in streams": lambda data: lzma.compress(data[:1000]) + lzma.compress(data[1000:]),
    "zstd": lambda data: zstandard.compress(data),
    "zstd in frames, one of them skippable": lambda data: (
        zstandard.compress(data[:1000]) + SKIPPED + zstandard.compress(data[1000:]) + SKIPPED
    ),
    "lz4": lambda data: lz4.MAGIC + b"".join(map(lz4_block, (data[:1000], data[1000:]))),
    "gzip, padded with zeros": lambda data: gzip.compress(data) + bytes(1024),
}


@pytest.mark.parametrize("form", FORMS)
def test_unpacked_content_equals_the_packed_content(tmp_path: Path, form: str) -> None:
    packed = FORMS[form](CONTENT)
    made = unpack(io.BytesIO(packed), "it", tmp_path / "plain")
    assert (tmp_path / "plain").read_bytes() == CONTENT
    assert (made.size, made.packed_size) == (len(CONTENT), len(packed))
    assert made.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert made.packed_sha256 == hashlib.sha256(packed).hexdigest()
    assert (tmp_path / "plain").stat().st_blocks * 512 < 1 << 20  # the zeros are a hole
    (tmp_path / "packed").write_bytes(packed)
    assert first_bytes(tmp_path / "packed", 2000) == CONTENT[:2000]


@pytest.mark.parametrize("form", ["gzip", "bzip2", "xz", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "followed"])
def test_damaged_files_leave_nothing(tmp_path: Path, form: str, damage: str) -> None:
    packed = FORMS[form](CONTENT)
    packed = packed[: len(packed) // 2] if damage == "cut" else packed + b"more of something else"
    with pytest.raises(UserError, match="it: damaged compressed file"):
        unpack(io.BytesIO(packed), "it", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize("form", ["gzip", "bzip2", "xz"])
def test_many_short_parts_are_read_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """What a part does not use is read again: at most 4 KiB each, also behind a large part. Control: the content."""
    taken, reading = [0], _Window.read

    def counted(window: _Window, size: int = CHUNK) -> bytes:
        piece = reading(window, size)
        taken[0] += len(piece)
        return piece

    monkeypatch.setattr(_Window, "read", counted)
    large, parts = random.Random(1).randbytes(1 << 20), 5000
    packed = FORMS[form](large) + FORMS[form](b"") * parts
    made = unpack(io.BytesIO(packed), "it", tmp_path / "plain")
    assert (made.size, made.packed_size) == (1 << 20, len(packed))
    assert (tmp_path / "plain").read_bytes() == large
    assert taken[0] < 3 * len(packed) + parts * (4096 + 2 * MAGIC_SIZE)


@pytest.mark.parametrize("form", ["gzip", "xz", "zstd"])
def test_a_bomb_ends_at_the_limit(tmp_path: Path, form: str) -> None:
    packed = FORMS[form](bytes(64 << 20))
    assert len(packed) < 128 << 10
    with pytest.raises(UserError, match="more than 1048576 bytes when decompressed"):
        unpack(io.BytesIO(packed), "it", tmp_path / "plain", largest=1 << 20)
    assert not (tmp_path / "plain").exists()
    # Control: without the limit it is all there.
    assert unpack(io.BytesIO(packed), "it", tmp_path / "plain").size == 64 << 20


ROOT = tar_bytes([directory("./"), directory("./etc"), member("./etc/os-release", "ID=x\n")])
DISK = bytes(510) + b"\x55\xaa" + bytes(1 << 20)
EXPECTED = {
    "root.tar": (ROOT, Form.TAR),
    "root.tar.gz": (gzip.compress(ROOT), Form.PACKED_TAR),
    "root.tar.xz": (lzma.compress(ROOT), Form.PACKED_TAR),
    "root.tar.zst": (zstandard.compress(ROOT), Form.PACKED_TAR),
    "disk.raw": (DISK, Form.DISK),
    "disk.raw.gz": (gzip.compress(DISK), Form.DISK_INSIDE),
    "disk.qcow2.xz": (lzma.compress(b"QFI\xfb" + DISK), Form.DISK_INSIDE),
    "gce.tar.gz": (gzip.compress(tar_bytes([member("disk.raw", DISK)], tarfile.GNU_FORMAT)), Form.DISK_INSIDE),
    "machine.ova": (tar_bytes([member("machine.ovf", "<Envelope/>"), member("a.vmdk", b"KDMV")]), Form.DISK_INSIDE),
    "note.txt": (b"hello", Form.TAR),
    "empty": (b"", Form.TAR),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_format_is_recognised_by_the_content(tmp_path: Path, name: str) -> None:
    data, form = EXPECTED[name]
    path = tmp_path / name.replace(".", "-")
    path.write_bytes(data)
    assert given(str(path)).form is form


@pytest.mark.parametrize("pack", ["", "gzip", "zstd"])
def test_container_images_are_recognised(tmp_path: Path, pack: str) -> None:
    image = MadeImage([ROOT])
    assert given(str(write_layout(tmp_path / "layout", layout_files(image)))).form is Form.CONTAINER
    assert given(str(archive_of(tmp_path / "oci.tar", layout_files(image), pack))).form is Form.CONTAINER
    assert given(str(archive_of(tmp_path / "saved.tar", docker_files(image), pack))).form is Form.CONTAINER


def test_prefixes_and_tags(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    for text, path, tag, docker in (
        (f"oci:{tmp_path}/x", tmp_path / "x", "", False),
        (f"oci:{tmp_path}/x:13", tmp_path / "x", "13", False),
        (f"oci:{tmp_path}/a:b", tmp_path / "a:b", "", False),
        (f"oci-archive:{tmp_path}/x.tar:v1", tmp_path / "x.tar", "v1", False),
        (f"docker-archive:{tmp_path}/x.tar:v1", tmp_path / "x.tar", "v1", True),
    ):
        found = given(text)
        assert (found.form, found.path, found.tag, found.docker) == (Form.CONTAINER, path, tag, docker)
    assert given("docker://host.example/name:1").form is Form.REGISTRY


def test_a_pipe_a_directory_and_a_missing_file_are_not_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    assert given(str(tmp_path / "fifo")).form is Form.TAR
    assert given(str(tmp_path)).form is Form.TAR and given(str(tmp_path / "missing")).form is Form.TAR
