# SPDX-License-Identifier: Apache-2.0
"""The artefact cache on this machine: entries by key, and their blobs by digest.

    entries/KEY           the outputs of an artefact (sevsnp.store.entries); its modification time is its last use
    blobs/AB/ABCDEF…      content, read-only, with holes
    locks/                one lock for the whole cache, one for each key that is being made

A blob is written beside its place, checked and renamed. An entry is written after its blobs. An interruption therefore
leaves nothing that looks complete. A blob whose content does not match its name is removed, and made again.
"""

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.store.digests import Index, is_private
from sevsnp.store.entries import Blob, Directory, Entry, EntryError, File, Link, Tree
from sevsnp.system.copying import copy_file
from sevsnp.system.files import CHUNK, remove_tree, scratch_directory, sha256_file
from sevsnp.system.locks import locked, locked_if_free

# An output that is not readable for everybody is treated as a secret.
_PUBLIC = 0o044


class DamagedError(Exception):
    """A blob or an entry is missing or has the wrong content."""


@dataclass(frozen=True)
class Usage:
    """What the cache holds: the number of entries and blobs, and the bytes that they take on disk."""

    entries: int
    blobs: int
    size: int


class LocalStore:
    """The cache below ``directory``; ``index`` remembers digests."""

    def __init__(self, directory: Path, index: Index) -> None:
        self.directory = directory
        self._index = index
        self._entries, self._blobs, self._locks = (directory / name for name in ("entries", "blobs", "locks"))
        self._check_private()

    def _check_private(self) -> None:
        """Refuse a directory that others can write to: they could replace entries, and with them the digests."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.directory.stat()
        except OSError as error:
            raise UserError(
                f"{self.directory}: the artefact cache cannot be made: {error.strerror}",
                "set SEVSNP_CACHE to a directory of your own, or CACHE=off to build without it",
            ) from error
        if not is_private(self.directory):
            raise UserError(
                f"{self.directory}: found a directory of user {status.st_uid} with mode "
                f"{stat.S_IMODE(status.st_mode):04o}, expected one that only you can write to",
                "set SEVSNP_CACHE to a directory of your own, or CACHE=off to build without it",
            )

    # The locks. A process that reads or adds holds the lock of the whole cache shared; a process that removes holds it
    # exclusively.

    def making(self, key: str, waiting: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Be the only maker of ``key`` among all processes on this cache."""
        return locked(self._locks / key, waiting=waiting)

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is removed from the cache while the context lasts."""
        return locked(self._locks / "all", shared=True)

    # Entries.

    def entry(self, key: str, *, vouched: bool = False) -> Entry | None:
        """The entry stored under ``key``; None if there is none, or if the document is not valid.

        With ``vouched``, only an entry that was made here, or that was signed by the key that the pulling run required.
        """
        path = self._entries / key
        try:
            entry = Entry.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except EntryError:
            path.unlink(missing_ok=True)
            return None
        if entry.key != key:
            path.unlink(missing_ok=True)
            return None
        if vouched and path.stat().st_mode & 0o200:
            return None
        os.utime(path)
        return entry

    def add(self, entry: Entry, *, vouched: bool = True) -> None:
        """Keep an entry whose blobs are all here; the file mode marks an entry that is not vouched for."""
        self._entries.mkdir(parents=True, exist_ok=True)
        with scratch_directory(self._entries / entry.key) as scratch:
            new = scratch / "entry"
            new.write_bytes(entry.to_bytes())
            new.chmod(0o444 if vouched else 0o644)
            new.replace(self._entries / entry.key)

    def drop(self, key: str) -> None:
        (self._entries / key).unlink(missing_ok=True)

    # Blobs.

    def blob_path(self, blob: Blob) -> Path:
        return self._blobs / blob.sha256[:2] / blob.sha256

    def has(self, blob: Blob) -> bool:
        """Whether a blob is here and whole; a damaged blob is removed."""
        try:
            self.check(blob)
        except DamagedError:
            return False
        return True

    def check(self, blob: Blob, *, thorough: bool = False) -> Path:
        """The path of a whole blob. Raises :class:`DamagedError` for a damaged blob, which it removes.

        ``thorough`` reads the whole blob; otherwise a blob that the file system reports as unchanged is not read again.
        """
        path = self.blob_path(blob)
        try:
            found = sha256_file(path) if thorough else self._index.file(path)
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}") from None
        if found != blob.sha256:
            path.unlink(missing_ok=True)
            raise DamagedError(f"{path}: found SHA-256 {found}, so it was removed")
        return path

    @contextlib.contextmanager
    def new_blob(self, blob: Blob) -> Iterator[Path]:
        """A path to write a blob's content to. At the end the file becomes the blob if its digest matches."""
        path = self.blob_path(blob)
        with scratch_directory(path) as scratch:
            new = scratch / "blob"
            yield new
            found = sha256_file(new)
            if found != blob.sha256:
                raise DamagedError(f"blob {blob.sha256}: found SHA-256 {found}")
            self._place(new, blob)

    def _place(self, new: Path, blob: Blob) -> None:
        new.chmod(0o444)
        new.replace(self.blob_path(blob))
        self._index.note(self.blob_path(blob), blob.sha256)

    # Artefacts.

    def keep(self, entry: Entry, outputs: Mapping[str, Path]) -> bool:
        """Copy the outputs into the cache. False, and nothing is kept, if one of them is not readable for everybody."""
        if not all(map(_is_public, entry.outputs.values())):
            return False
        for name, made in entry.outputs.items():
            if isinstance(made, File):
                self._keep_file(made.blob, outputs[name])
            else:
                self._keep_tree(made, outputs[name])
        self.add(entry)
        return True

    def keep_file(self, made: File, path: Path) -> None:
        """Copy one output that is finished before the others, if it is readable for everybody."""
        if _is_public(made):
            self._keep_file(made.blob, path)

    def _keep_file(self, blob: Blob, path: Path) -> None:
        """Copy a file that was just hashed in a private scratch directory: a second hash is not needed."""
        if not self.has(blob):
            with scratch_directory(self.blob_path(blob)) as scratch:
                copy_file(path, scratch / "blob", 0o444)
                self._place(scratch / "blob", blob)

    def _keep_tree(self, tree: Tree, root: Path) -> None:
        packed = tree.packed()
        for name, node in tree.nodes.items():
            if isinstance(node, File) and name not in packed:
                self._keep_file(node.blob, root / name)
        if not self.has(tree.pack):
            with self.new_blob(tree.pack) as new, new.open("wb") as pack:
                for name in packed:
                    with (root / name).open("rb") as stream:
                        shutil.copyfileobj(stream, pack, CHUNK)

    def restore(self, entry: Entry, name: str, target: Path) -> None:
        """Make output ``name`` of an entry at ``target``, which must not exist. Raises :class:`DamagedError`."""
        made = entry.outputs[name]
        if isinstance(made, File):
            self._restore_file(made, target)
        else:
            self._restore_tree(made, target)

    def _restore_file(self, file: File, target: Path) -> None:
        copy_file(self.check(file.blob), target, file.mode)
        if target.stat().st_size != file.blob.size:
            raise DamagedError(f"{self.blob_path(file.blob)}: changed while it was copied")

    def _restore_tree(self, tree: Tree, target: Path) -> None:
        packed = tree.packed()
        target.mkdir(mode=0o700)
        with self.check(tree.pack).open("rb") as pack:
            for name, node in tree.nodes.items():
                place = target / name
                if isinstance(node, Directory):
                    place.mkdir(mode=0o700)
                elif isinstance(node, Link):
                    place.symlink_to(node.target)
                elif name in packed:
                    data = pack.read(node.blob.size)
                    if hashlib.sha256(data).hexdigest() != node.blob.sha256:
                        raise DamagedError(f"pack {tree.pack.sha256}: {name} is not what its listing says")
                    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, node.mode)
                    with os.fdopen(descriptor, "wb") as stream:
                        stream.write(data)
                    place.chmod(node.mode)
                else:
                    self._restore_file(node, place)
        # Last, and the deepest first: a directory's final mode may deny writing even to its owner.
        for name, node in reversed(list(tree.nodes.items())):
            if isinstance(node, Directory):
                (target / name).chmod(node.mode)
        target.chmod(tree.mode)

    # Upkeep.

    def usage(self) -> Usage:
        """How much the cache holds now."""
        blobs = [status for _, status in self._listed_blobs()]
        return Usage(len(self._listed_entries()), len(blobs), sum(status.st_blocks * 512 for status in blobs))

    def prune(self, limit: int) -> Usage | None:
        """Remove the least recently used entries until the rest fits into ``limit`` bytes.

        Blobs of no entry are removed too. Returns what was removed, or None if another run uses the cache right now.
        """
        with locked_if_free(self._locks / "all") as free:
            if not free:
                return None
            self._sweep()
            sizes = {path.name: status.st_blocks * 512 for path, status in self._listed_blobs()}
            before = self.usage()
            kept: set[str] = set()
            total = 0
            full = False
            for path in reversed(self._listed_entries()):
                try:
                    needed = {blob.sha256 for blob in Entry.from_bytes(path.read_bytes()).blobs()}
                except EntryError:
                    needed, full_entry = set(), True
                else:
                    # An entry that is larger than the limit goes alone, and not together with all entries before it.
                    alone = sum(sizes.get(name, 0) for name in needed) > limit
                    total += 0 if alone else sum(sizes.get(name, 0) for name in needed - kept)
                    full = full or total > limit
                    full_entry = alone or full
                if full_entry:
                    path.unlink(missing_ok=True)
                else:
                    kept |= needed
            for path, _ in self._listed_blobs():
                if path.name not in kept:
                    path.unlink(missing_ok=True)
            for path in self._locks.iterdir():
                if path.name != "all":
                    with locked_if_free(path) as free:
                        if free:
                            path.unlink(missing_ok=True)
            after = self.usage()
            return Usage(before.entries - after.entries, before.blobs - after.blobs, before.size - after.size)

    def verify(self) -> list[str]:
        """Read every blob again. Removes damaged blobs and incomplete entries; returns what it found, a line each."""
        said = []
        bad: set[str] = set()
        for path, status in self._listed_blobs():
            try:
                self.check(Blob(path.name, status.st_size), thorough=True)
            except (DamagedError, EntryError) as error:
                said.append(str(error))
                bad.add(path.name)
                path.unlink(missing_ok=True)
        there = {path.name for path, _ in self._listed_blobs()}
        for path in self._listed_entries():
            try:
                entry = Entry.from_bytes(path.read_bytes())
                if entry.key != path.name:
                    raise EntryError(f"belongs to key {entry.key}")
                lacking = {blob.sha256 for blob in entry.blobs()} - there
            except EntryError as error:
                said.append(f"{path}: {error}, so it was removed")
                path.unlink(missing_ok=True)
                continue
            if lacking:
                said += [] if lacking & bad else [f"{path}: lacks blob {min(lacking)}, so it was removed"]
                path.unlink(missing_ok=True)
        return said

    def _sweep(self) -> None:
        """Remove what killed runs left; the caller must hold the cache alone."""
        for path in (*self._entries.glob(".*"), *self._blobs.glob("*/.*")):
            remove_tree(path)

    def _listed_entries(self) -> list[Path]:
        """The entries, the least recently used first."""
        if not self._entries.is_dir():
            return []
        found = [(path.stat().st_mtime_ns, path) for path in self._entries.iterdir() if not path.name.startswith(".")]
        return [path for _, path in sorted(found)]

    def _listed_blobs(self) -> list[tuple[Path, os.stat_result]]:
        if not self._blobs.is_dir():
            return []
        return [(path, path.stat()) for path in sorted(self._blobs.glob("*/*")) if not path.name.startswith(".")]


def _is_public(made: File | Tree) -> bool:
    """Whether everybody may read the output and everything in it."""
    if isinstance(made, File):
        return made.mode & _PUBLIC == _PUBLIC
    modes = [made.mode, *(node.mode for node in made.nodes.values() if not isinstance(node, Link))]
    return all(mode & _PUBLIC == _PUBLIC for mode in modes)
