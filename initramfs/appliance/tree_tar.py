# SPDX-License-Identifier: Apache-2.0
"""Streams a mounted file system as a tar: owners, modes, hard links, holes, nodes and extended attributes are kept.

POSIX pax with the records that GNU tar writes. Python's tarfile would take many times as long; under emulation that is
minutes.
"""

import errno
import os
import stat
from collections.abc import Callable

from ustar import BLOCK, member, padding, record, sparse

_SMALL = 1 << 16
_FLUSHED = 1 << 20
_PIECE = 8 << 20
# Bytes. A smaller hole is not recorded: without records the archive is read faster.
_HOLES = 1 << 20
# These belong to the file system or to the distribution's policy, not to the file; they are counted and left out.
LEFT_OUT = ("security.selinux", "btrfs.")
# XFS shows to root a second time, in its own form, what system.posix_acl_access and _default have.
_ACLS_OF_XFS = ("trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT")

_TYPES = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
          stat.S_IFIFO: b"6"}  # fmt: skip


class TreeTar:
    """Writes entries to the file descriptor ``out`` from its present position.

    ``say`` gets the bytes written so far.
    """

    def __init__(self, out: int, say: "Callable[[int], object]") -> None:
        self._out = out
        self._say = say
        self._buffer = bytearray()
        self._first: dict[tuple[int, int], bytes] = {}
        self.size = 0
        self.entries = 0
        self.left_out: dict[str, int] = {}

    def add(self, name: bytes, path: bytes) -> None:
        """Add the entry at ``path`` alone, under ``name`` (relative, without ``./``; empty: the root)."""
        status = os.lstat(path)
        kind = _TYPES.get(stat.S_IFMT(status.st_mode))
        if kind is None:  # a socket is useless without its process
            self._leave_out("sockets")
            return
        self.entries += 1
        shown = b"./" + name + (b"/" if kind == b"5" and name else b"")
        records, link, size = b"", b"", 0
        if kind == b"0":
            size = status.st_size
            if status.st_nlink > 1:
                key = (status.st_dev, status.st_ino)
                if key in self._first:
                    self._header(shown, b"1", status, 0, self._first[key], b"")
                    return
                self._first[key] = shown
        elif kind == b"2":
            link = os.readlink(path)
        for attribute, value in self._attributes(path):
            records += record(b"SCHILY.xattr." + os.fsencode(attribute), value)
        if kind != b"0" or not size:
            self._header(shown, kind, status, 0, link, records)
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if status.st_blocks * BLOCK + _HOLES <= size and len(ranges := _data(descriptor, size)) < 10000:
                self._sparse(descriptor, shown, status, ranges, records)
            else:
                self._header(shown, kind, status, size, link, records)
                self._copy(descriptor, 0, size, path)
                self._write(padding(size))
        finally:
            os.close(descriptor)

    def add_directory(self, name: bytes, like: bytes) -> None:
        """Add a directory of root that the image lacks, mode 0755, with the time of the directory ``like``."""
        self.entries += 1
        mtime = min(max(0, int(os.lstat(like).st_mtime)), (1 << 33) - 1)
        self._write(member(b"./" + name + b"/", b"5", mode=0o755, uid=0, gid=0, size=0, mtime=mtime))

    def close(self) -> None:
        """Write the end mark; when this returns, all data are on the disk."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.size % (20 * BLOCK)))
        self._flush()
        os.fsync(self._out)
        self._say(self.size)

    def _leave_out(self, what: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1

    def _attributes(self, path: bytes) -> "list[tuple[str, bytes]]":
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.ENODATA):
                return []
            raise
        found = []
        for name in sorted(names):
            if name.startswith(LEFT_OUT):
                self._leave_out(name)
            elif name not in _ACLS_OF_XFS:
                found.append((name, os.getxattr(path, name, follow_symlinks=False)))
        return found

    def _sparse(
        self, descriptor: int, shown: bytes, status: os.stat_result, ranges: "list[tuple[int, int]]", records: bytes
    ) -> None:
        """GNU tar's format 1.0: a map in text before the data, and the real name and size in records."""
        more, table = sparse(shown, status.st_size, ranges)
        records += more
        data = sum(length for _, length in ranges)
        self._header(b"./GNUSparseFile.0/file", b"0", status, len(table) + data, b"", records)
        self._write(table)
        for offset, length in ranges:
            self._copy(descriptor, offset, length, shown)
        self._write(padding(data))

    def _header(self, name: bytes, kind: bytes, status: os.stat_result, size: int, link: bytes, records: bytes) -> None:
        node = status.st_rdev if kind in (b"3", b"4") else 0
        self._write(
            member(
                name,
                kind,
                mode=status.st_mode & 0o7777,
                uid=status.st_uid,
                gid=status.st_gid,
                size=size,
                mtime=min(max(0, int(status.st_mtime)), (1 << 33) - 1),
                link=link,
                device=(os.major(node), os.minor(node)),
                before=records,
            )
        )

    def _write(self, data: bytes) -> None:
        self._buffer += data
        self.size += len(data)
        if len(self._buffer) >= _FLUSHED:
            self._flush()

    def _flush(self) -> None:
        view = memoryview(self._buffer)
        while view:
            view = view[os.write(self._out, view) :]
        self._buffer = bytearray()
        self._say(self.size)

    def _copy(self, descriptor: int, offset: int, length: int, shown: bytes) -> None:
        if length <= _SMALL:
            data = os.pread(descriptor, length, offset)
            if len(data) != length:
                raise OSError(errno.EIO, "a file ends early", os.fsdecode(shown))
            self._write(data)
            return
        self._flush()
        end = offset + length
        while offset < end:
            sent = os.sendfile(self._out, descriptor, offset, min(_PIECE, end - offset))
            if not sent:
                raise OSError(errno.EIO, "a file ends early", os.fsdecode(shown))
            offset += sent
            self.size += sent
            self._say(self.size)


def _data(descriptor: int, size: int) -> "list[tuple[int, int]]":
    """The data ranges of a file as (offset, length), without holes; at its end one of length 0, as GNU tar has it."""
    ranges, place = [], 0
    while place < size:
        try:
            start = os.lseek(descriptor, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        place = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        ranges.append((start, place - start))
    if ranges == [(0, size)]:
        ranges = _written(descriptor, size)
    return [*ranges, (size, 0)]


def _written(descriptor: int, size: int) -> "list[tuple[int, int]]":
    """The ranges that are not zero, in pieces of a MiB: a file system that compresses does not tell its holes."""
    ranges: list[tuple[int, int]] = []
    zeros = bytes(_HOLES)
    for place in range(0, size, _HOLES):
        piece = os.pread(descriptor, min(_HOLES, size - place), place)
        if piece == zeros[: len(piece)]:
            continue
        if ranges and sum(ranges[-1]) == place:
            ranges[-1] = (ranges[-1][0], place - ranges[-1][0] + len(piece))
        else:
            ranges.append((place, len(piece)))
    return ranges


def add_tree(tar: TreeTar, root: str, mounts: "dict[str, str]", skip: "Callable[[str, str], str]") -> None:
    """Add ``root`` and everything below it, names sorted; at each path of ``mounts`` the file system mounted elsewhere.

    ``mounts`` has relative paths, each with the place where the file system for it is mounted; a directory that the
    root lacks for one is made. ``skip`` is called for each directory (its name in the image and its path here); it
    returns why the directory is left out, or an empty string.
    """
    places = {os.fsencode(name): os.fsencode(path) for name, path in mounts.items()}
    missing = set(places)
    top = os.fsencode(root)
    stack = [(b"", top)]
    while stack:
        name, path = stack.pop()
        path = places.get(name, path)
        missing.discard(name)
        below = name + b"/" if name else b""
        # Mount points, or directories above them, that the file system has no directory for.
        made = {each[len(below) :].partition(b"/")[0] for each in missing if each.startswith(below)}
        if not os.path.lexists(path):
            tar.add_directory(name, top)
            names = made
        else:
            tar.add(name, path)
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                continue
            if reason := skip(os.fsdecode(name), os.fsdecode(path)):
                tar._leave_out(reason)
                continue
            names = set(os.listdir(path))
            if (name == b"" or name in places) and b"lost+found" in names and not os.listdir(path + b"/lost+found"):
                names.discard(b"lost+found")  # the file system's own; the new file system has one, too
            names |= made
        stack += [(below + each, os.path.join(path, each)) for each in sorted(names, reverse=True)]
    if missing:
        places_left = ", ".join(f"/{os.fsdecode(name)}" for name in sorted(missing))
        raise FileNotFoundError(errno.ENOENT, "what is above it is left out", places_left)
