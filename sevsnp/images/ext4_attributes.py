# SPDX-License-Identifier: Apache-2.0
"""Puts extended attributes and ACLs into an ext4 image with debugfs: mke2fs takes file capabilities only."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from sevsnp.archives.tar import Entry
from sevsnp.errors import UserError
from sevsnp.system.command import run
from sevsnp.system.files import scratch_directory

# Bytes. debugfs reads its commands by lines of 8 KiB.
_LONGEST = 4096
# Tags of an ACL's entries: ACL_USER and ACL_GROUP.
_NAMED = (0x02, 0x08)


def takes_name(name: str) -> bool:
    """Whether debugfs can be told of a file of this name: it reads commands by lines."""
    return "\n" not in name and len(name.encode("utf-8", "surrogateescape")) <= _LONGEST


def set_attributes(image: Path, entries: Iterable[Entry], *, tools: Path, env: Mapping[str, str]) -> None:
    """Set the attributes of ``entries``, which :func:`takes_name` allows, in ``image``, and read them back.

    Raises UserError for an attribute that is not there afterwards.
    """
    wanted: list[tuple[str, str, bytes]] = []
    inodes = set()
    for entry in entries:
        # All links of a file have its attributes.
        if entry.content is not None and entry.content.inode in inodes:
            continue
        if entry.content is not None:
            inodes.add(entry.content.inode)
        wanted += [(entry.name, attribute, value) for attribute, value in entry.values]
    if not wanted:
        return
    with scratch_directory(image) as scratch:
        for number, (_, _, value) in enumerate(wanted):
            (scratch / f"{number}.in").write_bytes(value)
        for verb, suffix, mode in (("ea_set", "in", ["-w"]), ("ea_get", "out", [])):
            lines = [
                f"{verb} -f {number}.{suffix} {_quoted(f'/{name}')} {_quoted(attribute)}\n"
                for number, (name, attribute, _) in enumerate(wanted)
            ]
            (scratch / verb).write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
            run([tools.resolve() / "debugfs", *mode, "-f", verb, image.absolute()], env=dict(env), cwd=scratch)
        for number, (name, attribute, value) in enumerate(wanted):
            found = scratch / f"{number}.out"
            if not found.is_file() or _stored(attribute, found.read_bytes()) != _stored(attribute, value):
                raise UserError(
                    f"/{name}: attribute {attribute} could not be put into {image.name}",
                    f"{image.name} was just made: is the disk full or failing?",
                )


def _stored(attribute: str, value: bytes) -> bytes:
    """A value as far as ext4 stores it: an ACL has numbers for named users and groups only (linux/posix_acl_xattr.h).

    The kernel gives the others as 0xffffffff, debugfs as 0.
    """
    if not attribute.startswith("system.posix_acl_") or len(value) % 8 != 4:
        return value
    entries = [list(struct.unpack_from("<HHI", value, place)) for place in range(4, len(value), 8)]
    for entry in entries:
        if entry[0] not in _NAMED:
            entry[2] = 0
    return value[:4] + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _quoted(text: str) -> str:
    """A word for debugfs (libss): in double quotes, a quote doubled."""
    return '"' + text.replace('"', '""') + '"'
