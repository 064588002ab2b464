# SPDX-License-Identifier: Apache-2.0
"""Reads a tar archive into an index of entries.

Nothing is unpacked, so owners, device nodes, set-user-id bits and file capabilities need no privilege. For a file's
content only its place in the archive is kept in memory.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from shlex import quote

from sevsnp.archives.plain_tar import MOST_ENTRIES, Member, plain_members
from sevsnp.archives.tar_reader import TAR_ERRORS, opened
from sevsnp.archives.ustar import BLOCK
from sevsnp.errors import AGAIN, UserError
from sevsnp.system.files import CHUNK

CAPABILITY = "security.capability"
# Bytes of a path, or of a link's target. The kernel takes no longer ones.
PATH_MAX = 4096

_ATTRIBUTE = re.compile(r"(?:(?:SCHILY|LIBARCHIVE)\.xattr|RHT)\.(.+)|SCHILY\.(acl\..+)")


class Kind(Enum):
    """The kind of an entry; the value is its ustar type flag. A hard link is a FILE that shares its content's inode."""

    FILE = b"0"
    SYMLINK = b"2"
    CHARACTER = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes: a range of an archive or another file, or ``data`` itself.

    Entries with equal ``inode`` are hard links of each other.
    """

    size: int
    inode: tuple[str, int]
    path: Path | None = None
    offset: int = 0
    data: bytes = b""
    sparse: bool = False

    @classmethod
    def literal(cls, name: str, data: bytes) -> "Content":
        """The content ``data`` of the file ``name``."""
        return cls(size=len(data), inode=(f"literal:{name}", 0), data=data)

    def pieces(self) -> Iterator[bytes]:
        """The bytes, at most 1 MiB at a time. Raises UserError if the archive ends early."""
        if self.path is None:
            yield self.data
            return
        if self.sparse:
            yield from self._expanded()
            return
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            left = self.size
            while left:
                piece = stream.read(min(CHUNK, left))
                if not piece:
                    raise UserError(f"{self.path}: ends early: {left} bytes of {self.inode} are missing")
                left -= len(piece)
                yield piece

    def extents(self) -> list[tuple[int, int, int]]:
        """The data of a sparse file, without its holes: (offset in the file, length, offset in the archive)."""
        assert self.path is not None
        with opened(self.path) as archive:
            member = self._member(archive)
            found, place = [], member.offset_data
            # GNU tar's map; typeshed does not know the attribute.
            parts: list[tuple[int, int]] = getattr(member, "sparse", None) or []
            for offset, length in parts:
                if length:
                    found.append((offset, length, place))
                place += length
        return found

    def _member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # Only tarfile supports the three sparse formats of GNU tar; it finds the member by its header.
        member = archive.next()  # the first member, which opening has already read
        if self.inode[1]:
            archive.offset = self.inode[1]
            member = archive.next()
        assert member is not None
        return member

    def _expanded(self) -> Iterator[bytes]:
        assert self.path is not None
        with opened(self.path) as archive:
            member = self._member(archive)
            stream = archive.extractfile(member)
            assert stream is not None
            while piece := stream.read(CHUNK):
                yield piece

    def read(self, limit: int = CHUNK) -> bytes:
        """All bytes of a small file. Raises UserError above ``limit`` bytes."""
        if self.size > limit:
            raise UserError(f"{self.inode[0]}: {self.size} bytes, expected at most {limit}")
        return b"".join(self.pieces())


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. ``name`` is relative without ``./`` and trailing ``/``; the root directory is the empty name.

    ``target`` is a symbolic link's text, ``device`` a node's (major, minor), ``capability`` the raw value of
    security.capability (20 or 24 bytes) or empty, ``attributes`` the names of other extended attributes and ACLs,
    ``values`` those of them whose value is known as the kernel has it, with that value.
    """

    name: str
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    content: Content | None = None
    capability: bytes = b""
    attributes: tuple[str, ...] = ()
    values: tuple[tuple[str, bytes], ...] = ()


def without_security(entry: Entry) -> Entry:
    """An entry whose content was changed: capabilities and signatures (security.*) were given to the old content."""
    return replace(
        entry,
        capability=b"",
        attributes=tuple(name for name in entry.attributes if not name.startswith("security.")),
        values=tuple(each for each in entry.values if not each[0].startswith("security.")),
    )


def normal_name(name: str, where: object) -> str:
    """``./a//b/`` as ``a/b``. Raises UserError for ``..``, NUL and a long name, naming the archive ``where``."""
    _check_length(name, where)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise UserError(f"{where}: entry {name!r}: expected a path inside the root, without '..'")
    return "/".join(parts)


def _check_length(path: str, where: object) -> None:
    """Refuse a long path before anything is made of its parts."""
    if (length := len(path.encode("utf-8", "surrogateescape"))) > PATH_MAX:
        raise UserError(f"{where}: found a path of {length} bytes ({path[:40]!r}…), expected at most {PATH_MAX}")


Below = Callable[[str], Entry | None]

_KINDS = {
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.FIFOTYPE: Kind.FIFO,
}


_MAGIC = {
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\xfd7zXZ": "an xz file",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"QFI\xfb": "a qcow2 disk image",
}
_NEITHER = "neither a tar archive nor a disk image"
_DAMAGED = "a tar archive that is damaged or cut short"
_UNPACKERS = {"a zstd file": "zstd", "an xz file": "xz", "a gzip file": "gzip", "a bzip2 file": "bzip2"}


def _format(path: Path) -> str:
    """The format of a file that is not a tar, guessed from its first bytes."""
    with path.open("rb") as stream:
        start = stream.read(BLOCK)
    if start[257:262] == b"ustar":
        return _DAMAGED
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), _NEITHER)


def _unpacking(path: Path) -> str:
    """A hint for a file that is not a tar: how to decompress it, or which formats are taken."""
    form = _format(path)
    if form == _DAMAGED:
        return AGAIN
    program = _UNPACKERS.get(form)
    if program is None:
        wanted = "give a root file system as a tar archive, or as a disk image (qcow2, raw, VMDK, VHDX or VHD)"
        return wanted if form == _NEITHER else ""
    plain = path.with_suffix("") if path.stem.endswith(".tar") else path.with_suffix(".tar")
    return f"decompress it, and give the uncompressed file: {program} -dc {quote(str(path))} >{quote(str(plain))}"


def read_tar(path: Path, below: Below | None = None) -> dict[str, Entry]:
    """The entries of an uncompressed tar by name; if a name comes twice, the later entry, as tar extracts it.

    ``below`` finds the entries of earlier archives, which hard links may name, too. Raises UserError for a file that
    is not a complete tar, a name outside the root, or a hard link to nothing.
    """
    entries: dict[str, Entry] = {}
    try:
        if (members := plain_members(path, MOST_ENTRIES)) is not None:
            for plain in members:
                entry = _plain_entry(plain, path, entries, below)
                entries.pop(entry.name, None)
                entries[entry.name] = entry
            return entries
        with opened(path) as archive:
            for count, member in enumerate(archive):
                if count == MOST_ENTRIES:
                    raise UserError(f"{path}: more than {MOST_ENTRIES} entries in the archive")
                entry = _entry(member, path, entries, below)
                entries.pop(entry.name, None)
                entries[entry.name] = entry
            end = archive.offset
        with path.open("rb") as stream:
            stream.seek(end)
            # tarfile takes a damaged or missing header in the middle for the end of the archive, without an error.
            if stream.read(BLOCK) != bytes(BLOCK):
                raise UserError(
                    f"{path}: damaged or cut off at byte {end}, expected a tar header or the end mark", AGAIN
                )
    except TAR_ERRORS as error:
        raise UserError(
            f"{path}: found {_format(path)}, expected an uncompressed tar archive ({error})",
            _unpacking(path),
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return entries


def _plain_entry(member: Member, path: Path, seen: dict[str, Entry], below: Below | None) -> Entry:
    """The same entry that :func:`_entry` makes of this member."""
    found = _Attributes(member.records.get(f"SCHILY.xattr.{CAPABILITY}", "").encode("utf-8", "surrogateescape"))
    content = None
    if member.kind == b"1":
        content, found = _linked(member.name, member.link, found, path, seen, below)
        kind = Kind.FILE
    else:
        kind = Kind(member.kind)
    if kind is Kind.FILE and content is None:
        content = Content(member.size, (str(path), member.offset), path, member.data)
    return _made(member, path, kind, member.link, member.device, content, found)


@dataclass(frozen=True, slots=True)
class _Attributes:
    """The extended attributes of one member: as in :class:`Entry`."""

    capability: bytes = b""
    names: tuple[str, ...] = ()
    values: tuple[tuple[str, bytes], ...] = ()


def _made(
    member: Member | tarfile.TarInfo,
    path: Path,
    kind: Kind,
    link: str,
    device: tuple[int, int],
    content: Content | None,
    attributes: _Attributes,
) -> Entry:
    name = normal_name(member.name, path)
    if not name and kind is not Kind.DIRECTORY:
        raise UserError(f"{path}: entry {member.name!r}: expected a directory as the root, found a {kind.name.lower()}")
    if kind is Kind.SYMLINK:
        _check_length(link, path)
    return Entry(
        name=name,
        kind=kind,
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        mtime=max(0, int(member.mtime)),
        target=link if kind is Kind.SYMLINK else "",
        device=device if kind in (Kind.CHARACTER, Kind.BLOCK) else (0, 0),
        content=content,
        capability=attributes.capability,
        attributes=attributes.names,
        values=attributes.values,
    )


def _linked(
    shown: str, target: str, found: _Attributes, path: Path, seen: dict[str, Entry], below: Below | None
) -> tuple[Content | None, _Attributes]:
    name = normal_name(target, path)
    linked = seen.get(name) or (below(name) if below else None)
    if linked is None or linked.kind is not Kind.FILE:
        raise UserError(f"{path}: entry {shown!r}: hard link to {target!r}, expected a link to an earlier file")
    # An archive has the attributes of a file with its first name.
    return linked.content, _Attributes(
        found.capability or linked.capability, found.names or linked.attributes, found.values or linked.values
    )


def _entry(member: tarfile.TarInfo, path: Path, seen: dict[str, Entry], below: Below | None) -> Entry:
    capability = b""
    names: set[str] = set()
    values: dict[str, bytes] = {}
    for key, value in member.pax_headers.items():
        if match := _ATTRIBUTE.fullmatch(key):
            attribute = match[1] or match[2]
            if attribute == CAPABILITY and key.startswith("SCHILY."):
                capability = value.encode("utf-8", "surrogateescape")
            elif attribute != CAPABILITY:  # libarchive writes each attribute twice; its own copy is base64
                names.add(attribute)
                if key.startswith("SCHILY.xattr."):
                    values[attribute] = value.encode("utf-8", "surrogateescape")
    found = _Attributes(capability, tuple(sorted(names)), tuple(sorted(values.items())))
    content = None
    if member.islnk():
        content, found = _linked(member.name, member.linkname, found, path, seen, below)
        kind = Kind.FILE
    elif member.isreg():
        kind = Kind.FILE
        content = Content(
            size=member.size,
            inode=(str(path), member.offset),
            path=path,
            offset=member.offset_data,
            sparse=member.issparse(),
        )
    elif member.type in _KINDS:
        kind = _KINDS[member.type]
    else:
        raise UserError(
            f"{path}: entry {member.name!r}: type {member.type!r} is not a type of file that a file system can store"
        )
    device = (member.devmajor, member.devminor)
    return _made(member, path, kind, member.linkname, device, content, found)
