# SPDX-License-Identifier: Apache-2.0
"""Writes tar archives whose bytes are the same on every machine.

POSIX pax: numeric owners without names, whole-second times, records only if a field does not fit its header. tarfile
would do, but its choice of records differs between Python versions, and these bytes are measured.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from sevsnp.archives.tar import CAPABILITY, Content, Entry, Kind
from sevsnp.archives.ustar import BLOCK, member, padding, record, sparse
from sevsnp.errors import UserError

# Bytes. For larger content a separate system call costs less than copying.
_LARGE = 1 << 16
_MAX_OPEN = 64


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def write_tar(entries: Iterable[Entry], output: Path, *, epoch: int, holes: bool = True) -> None:
    """Write ``entries`` to ``output`` in the order given; times after ``epoch`` (seconds since 1970) become ``epoch``.

    The first entry of an inode carries its bytes; later entries are hard links to it. Without ``holes`` the archive is
    for readers that do not know GNU tar's format for sparse files: it has their holes as zeros, and holes itself there.
    """
    with output.open("wb") as stream:
        stream_tar(entries, stream, epoch=epoch, holes=holes)


def stream_tar(entries: Iterable[Entry], stream: IO[bytes], *, epoch: int, holes: bool = True) -> None:
    """Write the same archive to a buffered stream on a file or pipe."""
    first: dict[tuple[str, int], Entry] = {}
    with _Output(stream) as output:
        for entry in entries:
            _write_entry(output, entry, first, epoch, holes=holes)
        output.write(bytes(2 * BLOCK))
        output.write(bytes(-output.size % (20 * BLOCK)))


class _Output:
    """A stream that counts its bytes. File content goes to it without passing through Python."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._sources: dict[Path, int] = {}
        self.size = 0

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._sources.values():
            os.close(descriptor)

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self._stream.write(data)

    def send(self, content: Content) -> None:
        """Write the content's bytes. Raises UserError if an archive ends early."""
        if content.path is None:
            self.write(content.data)
            return
        if content.sparse:
            place = 0
            for offset, length, source in content.extents():
                self._skip(offset - place)
                self.send_range(content, content.path, source, length)
                place = offset + length
            self._skip(content.size - place)
            return
        self.send_range(content, content.path, content.offset, content.size)

    def _skip(self, size: int) -> None:
        """Leave a hole where the stream can; write zeros into a pipe."""
        self.size += size
        if self._stream.seekable():
            self._stream.seek(size, os.SEEK_CUR)
            return
        while size:
            size -= self._stream.write(bytes(min(size, _LARGE)))

    def _source(self, path: Path) -> int:
        """The descriptor of an archive or file; few stay open, because a directory's files are an archive each."""
        if path not in self._sources:
            if len(self._sources) == _MAX_OPEN:
                os.close(self._sources.pop(next(iter(self._sources))))
            self._sources[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._sources[path]

    def send_range(self, content: Content, path: Path, place: int, size: int) -> None:
        """Write ``size`` bytes of the archive ``path`` from ``place`` on."""
        source = self._source(path)
        self.size += size
        if size > _LARGE:
            self._stream.flush()
        end = place + size
        while place < end:
            if size > _LARGE:
                sent = os.sendfile(self._stream.fileno(), source, place, end - place)
            else:
                sent = self._stream.write(os.pread(source, end - place, place))
            if not sent:
                raise UserError(f"{path}: ends early: {end - place} bytes of {content.inode} are missing")
            place += sent


def _write_entry(
    output: _Output, entry: Entry, first: dict[tuple[str, int], Entry], epoch: int, *, holes: bool
) -> None:
    name = _bytes(f"./{entry.name}" + ("/" if entry.kind is Kind.DIRECTORY and entry.name else ""))
    kind, link, size, content = entry.kind.value, _bytes(entry.target), 0, entry.content
    if content is not None:
        original = first.setdefault(content.inode, entry)
        if original is not entry:
            kind, link, content = b"1", _bytes(f"./{original.name}"), None
        else:
            size = content.size
    attributes = b""
    if kind != b"1":
        if entry.capability:
            attributes = record(f"SCHILY.xattr.{CAPABILITY}".encode(), entry.capability)
        for attribute, value in entry.values:
            attributes += record(b"SCHILY.xattr." + _bytes(attribute), value)
    table, extents = b"", None
    if content is not None and content.sparse and holes:
        extents = content.extents()
        ranges = [(offset, length) for offset, length, _ in extents]
        records, table = sparse(name, size, [*ranges, (size, 0)])
        attributes += records
        name, size = b"./GNUSparseFile.0/file", len(table) + sum(length for _, length in ranges)
    output.write(
        member(
            name,
            kind,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            size=size,
            mtime=min(entry.mtime, epoch),
            link=link,
            device=entry.device,
            after=attributes,
        )
    )
    if extents is not None and content is not None and content.path is not None:
        output.write(table)
        for _, length, place in extents:
            output.send_range(content, content.path, place, length)
    elif content is not None:
        output.send(content)
    output.write(padding(size))
