# SPDX-License-Identifier: Apache-2.0
"""The root file system as layers: packages, our files, the user's files; joined into one tar without unpacking."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sevsnp.archives.tar import Content, Entry, Kind, read_tar
from sevsnp.archives.tar_writer import write_tar
from sevsnp.errors import UserError

# 2025-01-01 00:00:00 UTC: the time of every entry in an image that has no older time of its own.
EPOCH = 1_735_689_600

Filter = Callable[[Iterable[Entry]], Iterable[Entry]]


@dataclass(frozen=True)
class Layer:
    """Entries that are put on top of the earlier layers.

    ``remove`` are patterns (``*`` does not match a ``/``, ``**`` does) of entries of earlier layers that this layer
    removes; directories are removed with their content. The removal comes before the layer's own entries.
    """

    name: str
    entries: Sequence[Entry]
    remove: Sequence[str] = ()

    @classmethod
    def from_tar(cls, path: Path, remove: Sequence[str] = ()) -> "Layer":
        """A layer of all entries of an uncompressed tar. Raises UserError if it is damaged."""
        return cls(str(path), list(read_tar(path).values()), remove)


def expression(pattern: str, *, below: bool = True) -> str:
    """A path pattern as a regular expression (re.DOTALL); with ``below`` it also matches everything below the path."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(special.get(piece) or re.escape(piece) for piece in pieces) + ("(?:/.*)?" if below else "")


def merge(layers: Sequence[Layer]) -> dict[str, Entry]:
    """One tree of all layers; a later layer wins. It is sorted so that a directory comes before its content.

    A directory over a directory replaces its owner, mode and time and keeps its content. Raises UserError if a path
    leads through a symbolic link or a file of an earlier layer: a silent replacement of, say, ``lib`` (a link to
    usr/lib) would give a system that does not start.
    """
    tree: dict[str, Entry] = {"": Entry("", Kind.DIRECTORY, 0o755, mtime=EPOCH)}
    for layer in layers:
        if layer.remove:
            removed = re.compile("|".join(map(expression, layer.remove)), re.DOTALL)
            tree = {name: entry for name, entry in tree.items() if not removed.fullmatch(name)}
            tree.setdefault("", Entry("", Kind.DIRECTORY, 0o755, mtime=EPOCH))
        for entry in layer.entries:
            _put(tree, entry, layer.name)
        sound: set[str] = set()
        for entry in layer.entries:
            _check_parents(tree, entry.name, layer.name, sound)
    return dict(sorted(tree.items(), key=lambda item: item[0].split("/")))


def _put(tree: dict[str, Entry], entry: Entry, layer: str) -> None:
    old = tree.get(entry.name)
    if old is not None and (old.kind is Kind.DIRECTORY) != (entry.kind is Kind.DIRECTORY):
        if old.kind is Kind.SYMLINK:
            raise UserError(
                f"{layer}: {entry.name}/: a directory, but an earlier layer has a link to {old.target} there",
                f"put its content under {old.target}/, or list {entry.name} under `remove`",
            )
        below = [name for name in tree if name.startswith(f"{entry.name}/")]
        if below:
            raise UserError(
                f"{layer}: {entry.name}: would replace a directory that holds {below[0]}",
                f"list {entry.name} under `remove` to replace the directory",
            )
    tree[entry.name] = entry


def _check_parents(tree: dict[str, Entry], name: str, layer: str, sound: set[str]) -> None:
    """Check the parents of ``name``. ``sound`` are the directories that are checked already, with all above them."""
    while name:
        name = name.rpartition("/")[0]
        if name in sound:
            return
        sound.add(name)
        parent = tree.get(name)
        if parent is None:
            tree[name] = Entry(name, Kind.DIRECTORY, 0o755, mtime=EPOCH)
        elif parent.kind is Kind.SYMLINK:
            raise UserError(
                f"{layer}: {name}/: the path leads through a link to {parent.target}",
                f"put it under {parent.target}/ instead",
            )
        elif parent.kind is not Kind.DIRECTORY:
            raise UserError(f"{layer}: {name}: holds other entries, but is a {parent.kind.name.lower()}")


def make_rootfs(
    layers: Sequence[Layer],
    output: Path,
    *,
    epoch: int = EPOCH,
    filters: Sequence[Filter] = (),
) -> None:
    """Join ``layers`` into the tar ``output``: sorted, owners as numbers, times at most ``epoch``.

    ``filters`` see the merged entries in order and may drop or replace them.
    """
    write_tar(rootfs_entries(layers, filters), output, epoch=epoch)


def rootfs_entries(layers: Sequence[Layer], filters: Sequence[Filter] = ()) -> list[Entry]:
    """The entries that :func:`make_rootfs` writes."""
    return filtered(merge(layers).values(), filters)


def filtered(entries: Iterable[Entry], filters: Sequence[Filter]) -> list[Entry]:
    """The entries of a merged tree after all filters, which run in their order."""
    for each in filters:
        entries = each(entries)
    return list(entries)


def text_entry(
    name: str, text: str | bytes, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int = EPOCH
) -> Entry:
    """A file with the given content."""
    data = text.encode() if isinstance(text, str) else text
    return Entry(name, Kind.FILE, mode, uid, gid, mtime, content=Content.literal(name, data))


def link_entry(name: str, target: str, mtime: int = EPOCH) -> Entry:
    """A symbolic link."""
    return Entry(name, Kind.SYMLINK, 0o777, mtime=mtime, target=target)


def directory_entry(name: str, mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int = EPOCH) -> Entry:
    """A directory."""
    return Entry(name, Kind.DIRECTORY, mode, uid, gid, mtime)


def directory_entries(root: Path, owners: Mapping[str, tuple[int, int]] | None = None) -> list[Entry]:
    """The tree under ``root`` as entries of root: mode 0755 for directories and executables, 0644 for other files.

    The modes, owners and times of the checkout are not used: they depend on umask, user and clock. Links stay links.
    Raises UserError for anything that is not a file, directory or link.
    """
    entries = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        uid, gid = (owners or {}).get(name, (0, 0))
        if path.is_symlink():
            entries.append(link_entry(name, str(path.readlink())))
        elif path.is_dir():
            entries.append(directory_entry(name, 0o755, uid, gid))
        elif path.is_file():
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            content = Content(size=path.stat().st_size, inode=(str(path), 0), path=path)
            entries.append(Entry(name, Kind.FILE, mode, uid, gid, EPOCH, content=content))
        else:
            raise UserError(f"{path}: expected a file, a directory or a link")
    return entries
