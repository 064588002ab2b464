# SPDX-License-Identifier: Apache-2.0
"""Finds the texts in a root by which a program is known that takes orders from the host (host-channels.yaml)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sevsnp.archives.tar import Entry, Kind
from sevsnp.archives.tree import Tree
from sevsnp.images.lists import read_classes

# Bytes. What is read of a program, and the largest script whose own calls are followed.
_LONGEST = 256 << 20
_LONGEST_SCRIPT = 1 << 20
_DEPTH = 3
_PATH = re.compile(rb"(?<![\w./-])/[\w.+@-][\w.+@/-]*")
_COMMENT = re.compile(rb"^[ \t]*#(?!!).*$", re.MULTILINE)
# Places that are empty when a guest starts: a program there comes from somewhere else.
_ELSEWHERE = ("/run/", "/mnt/", "/media/")
ELSEWHERE = "its program is not in the image"


@dataclass(frozen=True)
class Marks:
    """``channels``: the texts of host-channels.yaml by the reason; ``judged``: patterns of judged-programs.yaml."""

    channels: Mapping[str, Sequence[str]]
    judged: Sequence[str]


def read_marks(channels: Path, judged: Path) -> Marks:
    """Raises UserError if one of the two files is malformed."""
    kept = read_classes(judged, r"[A-Za-z0-9:_.\\@*?/-]+", "a program's path, a unit's name, or a shell pattern of it")
    return Marks(
        read_classes(channels, r"[ -~]{5,}", "a text of five characters or more"),
        # Entries of a root have no first slash, but people write it.
        [pattern.removeprefix("/") for patterns in kept.values() for pattern in patterns],
    )


class Channels:
    """Looks into the files of ``tree``. Each program is read once, 256 MiB at most."""

    def __init__(self, tree: Tree, marks: Marks) -> None:
        self._tree, self._marks = tree, marks
        self._found: dict[str, str] = {}
        self._texts = [(text.encode(), why) for why, texts in marks.channels.items() for text in texts]
        self._overlap = max((len(text) for text, _ in self._texts), default=1) - 1

    def judged(self, name: str) -> bool:
        """Whether a file or a unit stays, whatever is in it."""
        return any(fnmatchcase(name, pattern) for pattern in self._marks.judged)

    def of_bytes(self, data: bytes) -> str:
        """The reason for the first text that is in ``data``; empty if there is none."""
        return next((why for text, why in self._texts if text in data), "")

    def of_text(self, text: str) -> str:
        """The same for a script or settings, without comments, and for the programs that it names by their paths."""
        return self._of_script(text.encode("utf-8", "surrogateescape"), _DEPTH)

    def of_program(self, path: str) -> str:
        """Why the program at the absolute ``path`` takes orders from the host; empty if it does not."""
        return self._of_program(path, _DEPTH)

    def _of_program(self, path: str, depth: int) -> str:
        entry = self._tree.find(path)
        if entry is None:
            return ELSEWHERE if path.startswith(_ELSEWHERE) else ""
        if entry.kind is not Kind.FILE or entry.content is None or not entry.mode & 0o111 or self._stays(entry, path):
            return ""
        if entry.name not in self._found:
            self._found[entry.name] = ""  # for a script that names itself
            self._found[entry.name] = self._of_content(entry, depth)
        return self._found[entry.name]

    def _stays(self, entry: Entry, path: str) -> bool:
        return self.judged(entry.name) or self.judged(path.lstrip("/"))

    def _of_content(self, entry: Entry, depth: int) -> str:
        content = entry.content
        assert content is not None
        if content.size <= _LONGEST_SCRIPT:
            data = b"".join(content.pieces())
            return self._of_script(data, depth) if data[:2] == b"#!" else self.of_bytes(data)
        before, read = b"", 0
        for piece in content.pieces():
            if why := self.of_bytes(before + piece):
                return why
            before, read = piece[-self._overlap :], read + len(piece)
            if read >= _LONGEST:
                break
        return ""

    def _of_script(self, data: bytes, depth: int) -> str:
        data = _COMMENT.sub(b"", data)
        if why := self.of_bytes(data):
            return why
        return next(filter(None, self._called(data, depth)), "") if depth else ""

    def _called(self, data: bytes, depth: int) -> Iterator[str]:
        for path in dict.fromkeys(_PATH.findall(data)):
            name = path.decode("utf-8", "surrogateescape")
            # A path of /run in a script is a file of its own more often than a program.
            if self._tree.has(name):
                yield self._of_program(name, depth - 1)
