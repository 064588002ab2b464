"""The artefact cache of a run: this machine's directory first, then the registry that several machines share."""

import functools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sevsnp import progress
from sevsnp.errors import UserError
from sevsnp.store.entries import Entry, EntryError
from sevsnp.store.local import DamagedError, LocalStore
from sevsnp.store.session import OFF, Options, index, options

if TYPE_CHECKING:
    from sevsnp.store.registry import Registry

Note = Callable[[str], None]


class Cache:
    """Entries and their blobs, wherever they are. Trouble with a cache costs a warning, and never the build."""

    def __init__(self, chosen: Options) -> None:
        self.local = LocalStore(chosen.directory, index())
        self._options = chosen
        self._shared = _registry(chosen.shared)
        # One that failed is not asked again in this run: each question would cost its time-out.
        self._silent = threading.Event()

    def find(self, key: str, note: Note) -> Entry | None:
        """The entry for ``key``, with all its blobs on this machine when it is returned."""
        try:
            if (entry := self.local.entry(key)) and all(self.local.has(blob) for blob in entry.blobs()):
                return entry
            return self._pull(key, note)
        except OSError as error:
            note(f"the artefact cache cannot be used: {error}")
            return None

    def keep(self, entry: Entry, outputs: Mapping[str, Path], note: Note) -> None:
        """Store what was just made here, and send it on where that is asked for."""
        try:
            with self.local.in_use():
                kept = self.local.keep(entry, outputs)
        except (OSError, DamagedError) as error:
            note(f"not kept in the artefact cache: {error}")
            return
        if kept:
            self.push(entry, note)

    def push(self, entry: Entry, note: Note) -> None:
        """Send an entry to the shared cache, if this run may."""
        if self._shared is None or not self._options.push or self._silent.is_set():
            return
        from sevsnp.store.registry import Tampered, Unavailable

        try:
            with self.local.in_use():
                blobs = [(blob, self.local.check(blob)) for blob in entry.blobs()]
                progress.step("pushing to the shared cache")
                self._shared.push(entry.key, entry.to_bytes(), blobs)
        except (Unavailable, Tampered, DamagedError, OSError) as error:
            self._give_up(error, note)

    def prune(self) -> None:
        """Keep to the size limit; if somebody else uses the cache now, the next run will."""
        limit = self._options.limit
        try:
            if self.local.usage().size > limit:
                self.local.prune(limit)
        except OSError:
            return

    def _pull(self, key: str, note: Note) -> Entry | None:
        if self._shared is None or self._silent.is_set():
            return None
        from sevsnp.store.registry import Tampered, Unavailable

        try:
            document = self._shared.entry(key)
            if document is None:
                return None
            entry = Entry.from_bytes(document)
            if entry.key != key:
                raise EntryError("stored under another key")
            for blob in entry.blobs():
                if not self.local.has(blob):
                    with self.local.new_blob(blob) as new, progress.growing(new, blob.size, "pulling"):
                        self._shared.fetch(blob, new)
            self.local.add(entry)
            return entry
        except Unavailable as error:
            self._give_up(error, note)
        except (Tampered, EntryError, DamagedError) as error:
            note(f"refused what the shared cache has: {error}")
        return None

    def _give_up(self, error: Exception, note: Note) -> None:
        if not self._silent.is_set():
            self._silent.set()
            note(f"going on without the shared cache: {error}")


def _registry(shared: str) -> "Registry | None":
    if not shared:
        return None
    from sevsnp.store.registry import Registry, parse_reference

    return Registry(parse_reference(shared))


@functools.cache
def cache() -> Cache | None:
    """The cache of this run, or None where it is switched off. Raises UserError for one that cannot be trusted."""
    chosen = options()
    return None if chosen.shared == OFF else Cache(chosen)


def require_cache() -> Cache:
    """The cache of this run. Raises UserError where it is switched off."""
    found = cache()
    if found is None:
        raise UserError("CACHE=off: found no artefact cache, expected one", "leave CACHE away")
    return found
