# SPDX-License-Identifier: Apache-2.0
"""What an archive has inside: the disk of an OVA or of a cloud's tar, a compressed disk, a compressed tar."""

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from shlex import quote

from sevsnp.archives.tar import Content, Entry, read_tar
from sevsnp.containers.unpack import LARGEST, first_bytes, is_compressed, is_tar, open_range, unpack, unpack_file
from sevsnp.errors import AGAIN, UserError, called
from sevsnp.store.oci_blob import write_sparse
from sevsnp.store.oci_reference import clean
from sevsnp.system import progress
from sevsnp.system.files import scratch_directory

_DISK = re.compile(r".*\.(?:vmdk|vhdx?|qcow2|img|raw)(?:\.gz)?", re.IGNORECASE | re.DOTALL)
_HEADER = 512


def unpack_tar(*, image: Path, output: Path) -> None:
    """Write the compressed tar ``image`` as the tar ``output``. Raises UserError for what is no whole tar."""
    progress.step("decompressing")
    made = unpack_file(image, f"IMAGE={image}", output)
    try:
        read_tar(output)
    except UserError as error:
        output.unlink()
        if is_tar(first_bytes(image, _HEADER)):
            raise UserError(error.message.replace(str(output), f"IMAGE={image}"), AGAIN) from error
        found = "neither a tar archive nor a disk image"
        raise UserError(f"IMAGE={image}: a compressed file with {found} in it, expected one of them") from error
    print(f"  IMAGE={image}: a compressed tar, {made.size} bytes")


def unpack_disk(*, image: Path, output: Path) -> None:
    """Write the one disk image in ``image`` to ``output``: of an OVA, of a tar with disk.raw, or compressed itself.

    Raises UserError if there is no disk in it, or more than one.
    """
    name = f"IMAGE={image}"
    progress.step("decompressing")
    with scratch_directory(output) as scratch:
        archive = image
        if is_compressed(image):
            if not is_tar(first_bytes(image, _HEADER)):
                unpack_file(image, name, output)
                print(f"  {name}: a compressed disk image")
                return
            archive = scratch / "archive.tar"
            unpack_file(image, name, archive)
        entry = _disk(archive, image, name)
        assert entry.content is not None
        _copy(entry.content, archive, f"{name}: {entry.name}", output)
        print(f"  {name}: an archive; its disk is {clean(entry.name)}")


def _disk(archive: Path, image: Path, name: str) -> Entry:
    with called(archive, name):
        found = read_tar(archive)
    disks = [entry for entry in found.values() if entry.content is not None and _DISK.fullmatch(entry.name)]
    if not disks:
        held = ", ".join(clean(entry.name, 40) for entry in list(found.values())[:5] if entry.name)
        raise UserError(f"{name}: no disk image in this archive, found: {held}")
    if len(disks) > 1:
        names = [entry.name for entry in disks]
        raise UserError(
            f"{name}: several disk images in this archive: {clean(', '.join(names))}",
            f"take out the one with the root, and give it as IMAGE: tar -xf {quote(str(image))} {quote(names[0])}",
        )
    return disks[0]


def _copy(content: Content, archive: Path, name: str, output: Path) -> None:
    if content.size > LARGEST:
        raise UserError(f"{name}: a disk image of {content.size} bytes, expected at most {LARGEST}")
    if content.sparse:
        with output.open("wb") as stream:
            for offset, length, place in content.extents():
                stream.seek(offset)
                for piece in replace(content, sparse=False, size=length, offset=place).pieces():
                    write_sparse(stream, piece)
            stream.truncate(content.size)
        return
    with contextlib.closing(open_range(archive, content.offset, content.size)) as source:
        unpack(source, name, output)
