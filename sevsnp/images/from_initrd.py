# SPDX-License-Identifier: Apache-2.0
"""A distribution's own initrd as the first layer of the initramfs: only its content that nothing of ours acts on.

The kernel unpacks our layers over it, so our init is the one that runs, and starts only programs of ours. Some files
would still act while it runs: those that the dynamic loader, Python or a library of ours reads, and the programs that
the kernel itself starts. These are left out. The layer is part of the initramfs, so all that stays is measured.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from sevsnp.archives.cpio import with_parents
from sevsnp.archives.initrd import read_initrd
from sevsnp.archives.tar import Entry, Kind
from sevsnp.errors import UserError
from sevsnp.images.initramfs import MERGED, write_layer
from sevsnp.system.files import scratch_directory
from sevsnp.system.text import printable

# Who would read what is at such a path, while our init runs.
_ACTING = {
    "kernel/*": "early files for the kernel",  # microcode, and ACPI tables in the place of the measured choice of none
    "usr/sbin/*": "programs that the kernel starts",  # modprobe, request-key
    "etc/*": "configuration",  # ld.so.preload, ld.so.cache, openssl.cnf
    "usr/lib/ssl/*": "configuration",
    "usr/lib/sevsnp/*": "places of our own",
    "usr/lib/python*": "Python's modules",
    "*/pyvenv.cfg": "Python's modules",
    "usr/lib/x86_64-linux-gnu/*/*": "plug-ins of libraries",  # and glibc-hwcaps, which goes before our libraries
}
_OURS = "files of the same place as ours"
_MODULES = re.compile(r"usr/lib/modules/([^/]+)(?:/|$)")


def make_initrd_layer(*, initrd: Path, version: Path, layers: Sequence[Path], output: Path) -> None:
    """Write what stays of the file ``initrd`` as a layer to put before ``layers``, and print what was left out.

    ``version`` is the file in the unpacked kernel that names its release. Raises UserError for a damaged initrd, one
    with modules of another kernel, or one that has a directory where our layers have a file.
    """
    release = version.read_text().strip()
    with scratch_directory(output) as scratch:
        entries = _merged(read_initrd(initrd, scratch), initrd)
        _check_release(entries, initrd, release)
        ours: dict[str, Entry] = {}
        for number, layer in enumerate(layers):
            (place := scratch / str(number)).mkdir()
            ours |= {entry.name: entry for entry in read_initrd(layer, place)}
        kept, left_out = _kept(entries, ours, initrd)
        write_layer(with_parents(kept), output)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    print(f"  {printable(str(initrd))}: {len(kept)} entries taken; left out: {reasons or 'none'}")


def _merged(entries: Iterable[Entry], initrd: Path) -> dict[str, Entry]:
    """The entries by name, later ones over earlier ones, in the merged-/usr layout of our own layers."""
    found: dict[str, Entry] = {}
    for entry in entries:
        first, slash, _ = entry.name.partition("/")
        name = f"usr/{entry.name}" if first in MERGED and slash else entry.name
        if name and name not in MERGED:
            found[name] = replace(entry, name=name)
    _check_parents(found, found, initrd, "")
    return found


def _check_parents(names: Iterable[str], tree: dict[str, Entry], initrd: Path, whose: str) -> None:
    """Raises UserError for a name below an entry of ``tree`` that is not a directory: it would land elsewhere."""
    for name in names:
        parent = name.rpartition("/")[0]
        while parent:
            if parent in tree and tree[parent].kind is not Kind.DIRECTORY:
                kind = f"a {tree[parent].kind.name.lower()}{whose}"
                raise UserError(f"{initrd}: {printable(name)}: below {printable(parent)}, which is {kind}")
            parent = parent.rpartition("/")[0]


def _check_release(names: Iterable[str], initrd: Path, release: str) -> None:
    releases = {match[1] for name in names if (match := _MODULES.match(name))}
    if others := sorted(releases - {release}):
        raise UserError(
            f"{initrd}: found modules of the kernel {printable(', '.join(others))}, but the guest boots {release}",
            "give an initrd of that kernel: FROM_INITRD=…",
        )


def _kept(entries: dict[str, Entry], ours: dict[str, Entry], initrd: Path) -> tuple[list[Entry], Counter[str]]:
    """The entries that stay, and how many do not, by the reason."""
    kept: list[Entry] = []
    left_out: Counter[str] = Counter()
    # At the top, our init mounts file systems on empty directories of ours.
    filled = {name.partition("/")[0] for name in ours if "/" in name}
    empty = {name for name, entry in ours.items() if entry.kind is Kind.DIRECTORY and "/" not in name} - filled
    _check_parents(entries, ours, initrd, " in our initramfs")
    for name, entry in entries.items():
        if reason := _reason(name, entry, ours, empty, initrd):
            left_out[reason] += 1
        else:
            kept.append(entry)
    return kept, left_out


def _reason(name: str, entry: Entry, ours: dict[str, Entry], empty: set[str], initrd: Path) -> str:
    """Why an entry is left out; empty if it stays."""
    if (own := ours.get(name)) and Kind.DIRECTORY not in (own.kind, entry.kind):
        return _OURS
    if own and own.kind is not entry.kind:
        if entry.kind is Kind.DIRECTORY:
            raise UserError(
                f"{initrd}: {printable(name)}: a directory, where our initramfs has a {own.kind.name.lower()}"
            )
        return _OURS
    acting = next((why for pattern, why in _ACTING.items() if fnmatchcase(name, pattern)), "")
    return acting or ("places of our own" if any(name.startswith(f"{place}/") for place in empty) else "")
