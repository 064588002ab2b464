# SPDX-License-Identifier: Apache-2.0
"""Python's standard library in the initramfs: the modules that are listed, as byte code in the place of their sources.

Otherwise init compiles more than a megabyte of sources in every boot, nearly a tenth of a boot's work under emulation.
What is not listed is left out: what is not there needs no trust.
"""

import re
from collections.abc import Sequence
from fnmatch import filter as matching
from pathlib import Path

from sevsnp.archives.rootfs import text_entry
from sevsnp.archives.tar import Entry, Kind
from sevsnp.errors import UserError
from sevsnp.packages.wrappers import LIBRARIES, LOADER
from sevsnp.system.command import run

_LIBRARY = re.compile(r"usr/lib/python3\.\d+/(?P<name>[^.]*)(?P<suffix>.*)", re.DOTALL)
_INTERPRETER = re.compile(rf"usr/bin/python3[\d.]*|{re.escape(LIBRARIES)}/[^/]*\.so[^/]*")
_LARGEST = 64 << 20
# PEP 552: byte code that is never compared with a source. What decides the bytes is the source, the interpreter, the
# order in which one process compiles them, and PYTHONHASHSEED.
_SCRIPT = """
import marshal, sys
from importlib.util import MAGIC_NUMBER, source_hash
for line in sys.stdin:
    path = line.rstrip("\\n")
    with open(path, "rb") as stream:
        source = stream.read()
    code = compile(source, "/" + path, "exec", dont_inherit=True, optimize=0)
    with open(path + "c", "wb") as stream:
        stream.write(MAGIC_NUMBER + (1).to_bytes(4, "little") + source_hash(source) + marshal.dumps(code))
"""


def listed_modules(entries: Sequence[Entry], wanted: Sequence[str], where: str, scratch: Path) -> list[Entry]:
    """``entries``; of Python's library only the modules that a pattern of ``wanted`` matches, sources as byte code.

    A pattern is a path without suffix, as json/* or lib-dynload/_ssl. The interpreter among the entries compiles them,
    with its own loader and libraries, unpacked into ``scratch``. Entries without that library are returned as they are.
    Raises UserError, which names ``where``, for a pattern that no module matches.
    """
    library = {entry.name: match for entry in entries if (match := _LIBRARY.fullmatch(entry.name))}
    if not library:
        return list(entries)
    names = {match["name"] for match in library.values() if match["suffix"]}
    if missing := [pattern for pattern in wanted if not matching(names, pattern)]:
        raise UserError(f"{where}: the packages have no such module: {', '.join(missing)}")
    kept = {name for pattern in wanted for name in matching(names, pattern)}
    sources = sorted(name for name, match in library.items() if match["suffix"] == ".py" and match["name"] in kept)
    byte_code = _compiled(entries, sources, scratch)
    found = []
    for entry in entries:
        match = library.get(entry.name)
        if entry.name in byte_code:
            found.append(text_entry(f"{entry.name}c", byte_code[entry.name]))
        elif match is None or match["name"] in kept:
            found.append(entry)
    return found


def _compiled(entries: Sequence[Entry], sources: Sequence[str], scratch: Path) -> dict[str, bytes]:
    """The byte code of the sources, by their names."""
    for entry in entries:
        if _INTERPRETER.fullmatch(entry.name) or "/importlib/" in entry.name or entry.name in sources:
            _unpack(entry, scratch / entry.name)
    loader = (scratch / LOADER).absolute()
    run(
        [loader, "--inhibit-cache", "--library-path", LIBRARIES, "usr/bin/python3", "-ISB", "-c", _SCRIPT],
        cwd=scratch,
        env={"PYTHONHASHSEED": "0"},
        stdin="".join(f"{name}\n" for name in sources).encode(),
    )
    return {name: (scratch / f"{name}c").read_bytes() for name in sources}


def _unpack(entry: Entry, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.kind is Kind.SYMLINK:
        path.symlink_to(entry.target)
    elif entry.content:
        path.write_bytes(entry.content.read(_LARGEST))
        path.chmod(entry.mode)
