# SPDX-License-Identifier: Apache-2.0
"""Tar archives, written as the same bytes on every machine.

POSIX pax: numeric owners without names, whole-second times, records only where a field does not fit its header. tarfile
would do, but its choice of records differs between Python versions, and these bytes are measured.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from sevsnp.archives.tar import BLOCK, CAPABILITY, Content, Entry, Kind
from sevsnp.errors import UserError

# Above this a system call of its own costs less than copying.
_LARGE = 1 << 16


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _record(key: str, value: bytes) -> bytes:
    """A pax record: its own decimal length, a space, key=value, a newline."""
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def _header(name: bytes, kind: bytes, entry: Entry, size: int, mtime: int, link: bytes = b"") -> bytes:
    fields = (
        name[:100].ljust(100, b"\0"),
        _octal(entry.mode, 8),
        _octal(entry.uid if entry.uid < 1 << 21 else 0, 8),
        _octal(entry.gid if entry.gid < 1 << 21 else 0, 8),
        _octal(size if size < 1 << 33 else 0, 12),
        _octal(mtime, 12),
        b" " * 8,
        kind,
        link[:100].ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),  # user and group names: numbers only
        _octal(entry.device[0], 8),
        _octal(entry.device[1], 8),
        bytes(167),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def write_tar(entries: Iterable[Entry], output: Path, *, epoch: int) -> None:
    """Write ``entries`` to ``output`` in the order given; times after ``epoch`` (seconds since 1970) become ``epoch``.

    The first entry of an inode carries its bytes, later ones are hard links to it.
    """
    with output.open("wb") as stream:
        stream_tar(entries, stream, epoch=epoch)


def stream_tar(entries: Iterable[Entry], stream: IO[bytes], *, epoch: int) -> None:
    """The same to a buffered stream on a file or pipe."""
    first: dict[tuple[str, int], Entry] = {}
    with _Output(stream) as output:
        for entry in entries:
            _write_entry(output, entry, first, epoch)
        output.write(bytes(2 * BLOCK))
        output.write(bytes(-output.size % (20 * BLOCK)))


class _Output:
    """A stream that counts, and takes the content of files without passing it through Python."""

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
        """The content's bytes. Raises UserError when an archive ends early."""
        if content.path is None or content.sparse:
            for piece in content.pieces():
                self.write(piece)
            return
        source = self._sources.get(content.path)
        if source is None:
            source = self._sources[content.path] = os.open(content.path, os.O_RDONLY | os.O_CLOEXEC)
        self.size += content.size
        if content.size > _LARGE:
            self._stream.flush()
        place, end = content.offset, content.offset + content.size
        while place < end:
            if content.size > _LARGE:
                sent = os.sendfile(self._stream.fileno(), source, place, end - place)
            else:
                sent = self._stream.write(os.pread(source, end - place, place))
            if not sent:
                raise UserError(f"{content.path}: ends early: {end - place} bytes of {content.inode} are missing")
            place += sent


def _write_entry(output: _Output, entry: Entry, first: dict[tuple[str, int], Entry], epoch: int) -> None:
    name = _bytes(f"./{entry.name}" + ("/" if entry.kind is Kind.DIRECTORY and entry.name else ""))
    kind, link, size, content = entry.kind.value, _bytes(entry.target), 0, entry.content
    if content is not None:
        original = first.setdefault(content.inode, entry)
        if original is not entry:
            kind, link, content = b"1", _bytes(f"./{original.name}"), None
        else:
            size = content.size
    records = b""
    if len(name) > 100:
        records += _record("path", name)
    if len(link) > 100:
        records += _record("linkpath", link)
    if size >= 1 << 33:
        records += _record("size", b"%d" % size)
    for key, value in (("uid", entry.uid), ("gid", entry.gid)):
        if value >= 1 << 21:
            records += _record(key, b"%d" % value)
    if entry.capability and kind != b"1":
        records += _record(f"SCHILY.xattr.{CAPABILITY}", entry.capability)
    mtime = min(entry.mtime, epoch)
    if records:
        plain = Entry(name="", kind=Kind.FILE, mode=0o644)
        output.write(_header(b"././@PaxHeader", b"x", plain, len(records), 0) + records + _padding(len(records)))
    output.write(_header(name, kind, entry, size, mtime, link))
    if content is not None:
        output.send(content)
        output.write(_padding(size))
