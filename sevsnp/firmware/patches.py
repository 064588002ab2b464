# SPDX-License-Identifier: Apache-2.0
"""Apply a Debian source package's patches (debian/patches, in the order of its series) to an unpacked source tree.

Unified diffs (POSIX, utility diff, "Diff -u Output Format") of existing and new text files. As dpkg-source demands, no
line may differ; a hunk may only be at another place than its header says.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sevsnp.errors import UserError

_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_NONE = "/dev/null"


@dataclass
class _Hunk:
    start: int  # of the old lines, from 0
    old: list[bytes] = field(default_factory=list)
    new: list[bytes] = field(default_factory=list)


@dataclass
class _FilePatch:
    path: PurePosixPath
    is_new: bool
    hunks: list[_Hunk] = field(default_factory=list)


def apply_series(patches: Path, tree: Path, wanted: Callable[[PurePosixPath], bool]) -> tuple[str, ...]:
    """Apply the patches that ``patches``/series lists to ``tree``; return their names.

    Files for which ``wanted`` is false are passed over. Raises :class:`UserError` naming patch and file.
    """
    try:
        series = (patches / "series").read_text().splitlines()
    except OSError as error:
        raise UserError(f"{patches}/series: {error.strerror}, expected a list of patches") from error
    names = tuple(line.split()[0] for line in series if line.strip() and not line.startswith("#"))
    for name in names:
        apply_patch(patches / name, tree, wanted)
    return names


def apply_patch(patch: Path, tree: Path, wanted: Callable[[PurePosixPath], bool]) -> None:
    """Apply one patch; paths in it have one leading directory, as a/ and b/. Errors as for :func:`apply_series`."""
    try:
        lines = patch.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{patch}: {error.strerror}, expected a patch") from error
    for each in _parsed(lines, patch):
        if not wanted(each.path):
            continue
        target = tree / each.path
        if each.is_new == target.exists():
            raise UserError(f"{patch}: {each.path}: {'is there already' if each.is_new else 'no such file'}")
        before = [] if each.is_new else target.read_bytes().splitlines(keepends=True)
        target.write_bytes(b"".join(_patched(before, each, patch)))


def _parsed(lines: list[bytes], patch: Path) -> Iterator[_FilePatch]:
    number = 0
    current: _FilePatch | None = None
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.startswith(b"--- ") and number < len(lines) and lines[number].startswith(b"+++ "):
            if current:
                yield current
            old, new = _name(line), _name(lines[number])
            if new == _NONE:
                raise UserError(f"{patch}: {old}: removes a file, which is not supported")
            current = _FilePatch(_place(new, patch), old == _NONE)
            number += 1
        elif current and (match := _HUNK.match(line)):
            hunk = _Hunk(max(int(match[1]) - 1, 0))
            number = _fill(hunk, int(match[2] or 1), int(match[3] or 1), lines, number, patch)
            current.hunks.append(hunk)
    if current:
        yield current
    else:
        raise UserError(f"{patch}: found no file name, expected a patch")


def _fill(hunk: _Hunk, old: int, new: int, lines: list[bytes], number: int, patch: Path) -> int:
    """Read the lines of a hunk with ``old`` and ``new`` lines; return the number of the line behind it."""
    while len(hunk.old) < old or len(hunk.new) < new:
        line = lines[number] if number < len(lines) else b""
        kind, text = line[:1], line[1:]
        if kind not in (b" ", b"-", b"+", b"\n"):
            raise UserError(f"{patch}: line {number + 1}: the patch ends, or is damaged, in the middle of a hunk")
        if kind == b"\n":  # an empty line whose blank was stripped
            text = line
        if kind != b"+":
            hunk.old.append(text)
        if kind != b"-":
            hunk.new.append(text)
        number += 1
    if number < len(lines) and lines[number].startswith(b"\\"):  # "No newline at end of file"
        raise UserError(f"{patch}: line {number + 1}: a file without an end of line, which is not supported")
    return number


def _name(line: bytes) -> str:
    return line[4:].split(b"\t")[0].strip().decode(errors="replace")


def _place(name: str, patch: Path) -> PurePosixPath:
    parts = PurePosixPath(name).parts[1:]
    if not parts or ".." in parts or name.startswith("/"):
        raise UserError(f"{patch}: found the file {name!r}, expected a path as b/NAME")
    return PurePosixPath(*parts)


def _patched(lines: list[bytes], patch: _FilePatch, name: Path) -> list[bytes]:
    made: list[bytes] = []
    done, shift = 0, 0
    for number, hunk in enumerate(patch.hunks, 1):
        place = _find(lines, hunk, done, hunk.start + shift)
        if place is None:
            raise UserError(f"{name}: {patch.path}: hunk {number} does not apply: the patch is for another source")
        shift = place - hunk.start
        made += lines[done:place] + hunk.new
        done = place + len(hunk.old)
    return made + lines[done:]


def _find(lines: list[bytes], hunk: _Hunk, least: int, expected: int) -> int | None:
    """The place of the hunk's old lines that is nearest to ``expected``, not before ``least``."""
    size = len(hunk.old)
    places = sorted(range(least, len(lines) - size + 1), key=lambda place: abs(place - expected))
    return next((place for place in places if lines[place : place + size] == hunk.old), None)
