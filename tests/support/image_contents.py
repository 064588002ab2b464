# SPDX-License-Identifier: Apache-2.0
"""What is in the images of the tables: roots with all that a careless copy loses, as systems that people have."""

import random
import struct
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sevsnp.archives.rootfs import EPOCH, directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Content, Entry, Kind, read_tar
from sevsnp.archives.tar_writer import write_tar

MIB = 1 << 20
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep
_ANY = 0xFFFFFFFF
# POSIX.1e as the kernel has it: version 2, then tag, permissions and number of each entry.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *each) for each in ((1, 6, _ANY), (2, 4, 1000), (4, 4, _ANY), (0x10, 4, _ANY), (0x20, 0, _ANY))
)
HOLE = 24 * MIB


def noted(entry: Entry, **values: bytes) -> Entry:
    """An entry with extended attributes; ``_`` in a name stands for a dot."""
    pairs = tuple(sorted((name.replace("_", ".", 1), value) for name, value in values.items()))
    return replace(entry, attributes=tuple(name for name, _ in pairs), values=pairs)


def root(*more: Entry, release: str = "ID=small\n") -> list[Entry]:
    """The minimum that is a root, with the directories that a guest needs."""
    points = ("dev", "etc", "home", "proc", "run", "srv", "sys", "usr", "usr/bin", "usr/sbin", "var")
    entries = [
        *(directory_entry(name) for name in points),
        directory_entry("tmp", 0o1777),
        text_entry("etc/os-release", release),
        text_entry("etc/fstab", ""),
        text_entry("etc/machine-id", ""),
        text_entry("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
        text_entry("usr/sbin/init", "#!/bin/sh\n", 0o755),
    ]
    return list({entry.name: entry for entry in (*entries, *more)}.values())


def odd() -> list[Entry]:
    """Owners, modes, hard links, nodes, names, attributes, capabilities and ACLs."""
    shared = Content.literal("shared", b"one file, two names\n")
    return [
        directory_entry("srv", 0o1777, 12, 34),
        Entry("srv/one", Kind.FILE, 0o640, 3_000_000, 7, mtime=EPOCH, content=shared),
        Entry("srv/two", Kind.FILE, 0o640, 3_000_000, 7, mtime=EPOCH, content=shared),
        replace(text_entry("srv/ping", "ping\n", 0o4755), capability=CAPABILITY),
        Entry("srv/null", Kind.CHARACTER, 0o666, device=(1, 3)),
        Entry("srv/disk", Kind.BLOCK, 0o660, gid=6, device=(253, 3)),
        Entry("srv/pipe", Kind.FIFO, 0o600),
        link_entry("srv/link", "y" * 150),
        link_entry("srv/dangling", "/no/where"),
        text_entry("srv/" + "n" * 200, "long\n"),
        text_entry("srv/Főtanúsítvány", "utf-8\n"),
        text_entry("srv/" + "x" * 120 + "\udce9", "no utf-8\n"),
        noted(text_entry("srv/noted", "x", 0o600), user_note=b"hi\0\xff", trusted_overlay=b"y"),
        noted(text_entry("srv/listed", "x", 0o640), system_posix_acl_access=ACL),
        text_entry("srv/empty", ""),
        Entry("srv/large", Kind.FILE, 0o644, mtime=EPOCH, content=Content.literal("large", bytes(range(256)) * 900)),
    ]


def sparse(directory: Path) -> Entry:
    """A file of which nearly all is a hole, as GNU tar has it."""
    path, tar = directory / "holes", directory / "holes.tar"
    with path.open("wb") as stream:
        stream.write(b"begin".ljust(4096, b"."))
        stream.seek(HOLE - MIB)
        stream.write(b"middle".ljust(4096, b"."))
        stream.truncate(HOLE)
    with tar.open("wb") as stream:
        data = path.read_bytes()
        table = f"3\n0\n4096\n{HOLE - MIB}\n4096\n{HOLE}\n0\n".encode().ljust(512, b"\0")
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("./GNUSparseFile.0/holes")
            info.mode, info.mtime, info.size = 0o644, EPOCH, 512 + 8192
            info.pax_headers = {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": "srv/holes",
                "GNU.sparse.realsize": str(HOLE),
            }
            with (directory / "packed").open("w+b") as packed:
                packed.write(table + data[:4096] + data[HOLE - MIB : HOLE - MIB + 4096])
                packed.seek(0)
                archive.addfile(info, packed)
    path.unlink()
    (entry,) = read_tar(tar).values()
    assert entry.content is not None and entry.content.sparse and entry.name == "srv/holes"
    return entry


def rich(directory: Path) -> list[Entry]:
    """A root with all of these."""
    return root(*odd(), sparse(directory))


def tar_of(entries: Sequence[Entry], path: Path, *, holes: bool = True) -> Path:
    """The entries as a tar, those of a directory after it."""
    write_tar(sorted(entries, key=lambda entry: entry.name), path, epoch=(1 << 33) - 1, holes=holes)
    return path


def noise(size: int) -> bytes:
    """Bytes that no compression makes smaller, the same each time."""
    return random.Random(1).randbytes(size)
