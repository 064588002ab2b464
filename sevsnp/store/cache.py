# SPDX-License-Identifier: Apache-2.0
"""The artefact cache of a run: this machine's directory first, then the registry that several machines share."""

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from sevsnp.errors import UserError
from sevsnp.store.digests import Index
from sevsnp.store.entries import Entry, EntryError, File
from sevsnp.store.local import DamagedError, LocalStore
from sevsnp.store.sealed import seal, signing_key, unseal
from sevsnp.store.session import OFF, Options, index, options
from sevsnp.system import progress

if TYPE_CHECKING:
    from sevsnp.store.registry import Registry

Note = Callable[[str], None]


class Cache:
    """Entries and their blobs, on this machine or in the registry.

    A failing cache causes a warning, never a failed build.
    """

    def __init__(self, chosen: Options, known: Index) -> None:
        if chosen.signing and chosen.push:
            if chosen.accepted is None:
                # This run would sign an entry that it had taken unchecked, and push it.
                raise UserError(
                    f"CACHE_KEY={chosen.signing} without CACHE_PUBLIC_KEY, expected both",
                    f"make the public one: openssl pkey -in {quote(str(chosen.signing))} -pubout -out PUBLIC_KEY",
                )
            signing_key(chosen.signing)  # asked for now, not after ten minutes of building
        self.local = LocalStore(chosen.directory, known)
        self._options = chosen
        self._shared = _registry(chosen.shared)
        # A registry that failed is not asked again in this run: each question would cost its time-out. A registry that
        # accepts no pushes may still serve pulls.
        self._silent = self._full = False
        # Whether the registry's last answer was good. If so, the next bad answer concerns that entry alone.
        self._sound = False
        self._deciding = threading.Lock()

    def find(self, key: str, note: Note) -> Entry | None:
        """The entry for ``key``, with all its blobs on this machine when it is returned."""
        try:
            entry = self.local.entry(key, vouched=self._checked)
            if entry and all(self.local.has(blob) for blob in entry.blobs()):
                return entry
            return self._pull(key, note)
        except OSError as error:
            note(f"the artefact cache cannot be used: {error}")
            return None

    def keep(self, entry: Entry, outputs: Mapping[str, Path], note: Note) -> None:
        """Store what this run just made here, and push it if the settings ask for that."""
        try:
            with self.local.in_use():
                kept = self.local.keep(entry, outputs)
        except (OSError, DamagedError) as error:
            note(f"not kept in the artefact cache: {error}")
            return
        if kept:
            self.push(entry, note)

    def keep_early(self, made: File, path: Path) -> None:
        """Store one file before the rest of its artefact is finished; :meth:`keep` reports any trouble later."""
        with contextlib.suppress(OSError, DamagedError), self.local.in_use():
            self.local.keep_file(made, path)

    def push(self, entry: Entry, note: Note) -> None:
        """Send an entry to the shared cache, if this run may push."""
        if self._shared is None or not self._options.push or self._silent or self._full:
            return
        from sevsnp.store.registry import Refused, Tampered, Unavailable

        try:
            with self.local.in_use():
                blobs = [(blob, self.local.check(blob)) for blob in entry.blobs()]
                progress.step("pushing to the shared cache")
                document = entry.to_bytes()
                if self._options.signing:
                    document = seal(document, self._options.signing)
                self._shared.push(entry.key, document, blobs)
        except Refused as error:
            with self._deciding:
                first, self._full = not self._full, True
            if first:
                note(f"nothing more is pushed to the shared cache: {error}")
        except Unavailable as error:
            self._give_up(error, note)
        except (Tampered, DamagedError, OSError) as error:
            note(f"not pushed to the shared cache: {error}")

    @property
    def _checked(self) -> bool:
        """Whether this run takes only signed entries from the registry."""
        return self._options.accepted is not None

    def prune(self) -> None:
        """Keep to the size limit; if another run uses the cache now, the next run does it."""
        limit = self._options.limit
        try:
            if self.local.usage().size > limit:
                self.local.prune(limit)
        except OSError:
            return

    def _pull(self, key: str, note: Note) -> Entry | None:
        if self._shared is None or self._silent:
            return None
        from sevsnp.store.registry import Refused, Tampered, Unavailable

        try:
            document = self._shared.entry(key)
            self._sound = True
            if document is None:
                return None
            try:
                entry = Entry.from_bytes(unseal(document, self._options.accepted))
                if entry.key != key:
                    raise EntryError(f"belongs to key {entry.key}")
            except EntryError as error:
                raise Tampered(f"{self._shared.reference}: entry {key}: {error}") from None
            for blob in entry.blobs():
                if not self.local.has(blob):
                    with self.local.new_blob(blob) as new, progress.growing(new, blob.size, "pulling"):
                        self._shared.fetch(blob, new)
            self.local.add(entry, vouched=self._checked)
            return entry
        except Unavailable as error:
            if isinstance(error, Refused) and self._sound:
                self._sound = False
                note(f"not available from the shared cache: {error}")
            else:
                self._give_up(error, note)
        except (Tampered, DamagedError) as error:
            note(f"refused what the shared cache has: {error}")
        return None

    def _give_up(self, error: Exception, note: Note) -> None:
        with self._deciding:
            first, self._silent = not self._silent, True
        if first:
            note(f"going on without the shared cache: {error}")


def _registry(shared: str) -> "Registry | None":
    if not shared:
        return None
    from sevsnp.store.registry import Registry, parse_reference

    return Registry(parse_reference(shared))


_opening = threading.Lock()


@functools.cache
def cache() -> Cache | None:
    """The cache of this run, or None if it is switched off. Raises UserError if it cannot be trusted."""
    chosen = options()
    if chosen.shared == OFF:
        return None
    # Two threads call this at once, and functools.cache runs the function in both: two caches would each wait for a
    # silent registry.
    with _opening:
        return _opened(chosen, index())


@functools.lru_cache(maxsize=1)
def _opened(chosen: Options, known: Index) -> Cache:
    return Cache(chosen, known)


def require_cache() -> Cache:
    """The cache of this run. Raises UserError if it is switched off."""
    found = cache()
    if found is None:
        raise UserError(
            "CACHE=off: found no artefact cache, expected one",
            "remove CACHE=off from the command line, the environment and config.yaml",
        )
    return found
