# SPDX-License-Identifier: Apache-2.0
"""The kernel's modules in the root of an adopted image, and the list of those that the guest loads."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from sevsnp.archives.rootfs import directory_entries
from sevsnp.archives.tar import Entry, Kind
from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError
from sevsnp.images.guest_check import asked_modules
from sevsnp.images.initramfs import ADOPTED, ADOPTED_FILES, MODULE_LISTS
from sevsnp.images.kernel_modules import ModuleTree
from sevsnp.images.lists import read_names
from sevsnp.system import progress
from sevsnp.system.command import run

MODULES = "lib/modules"
# init loads the modules named in this file and similar ones (initramfs/device_lock.py). Then the kernel refuses more.
LIST = "etc/modules-load.d/guest-vm.conf"


def loaded_modules(modules: Path, version: Path) -> list[str]:
    """The list ``adopted`` of modules.yaml. Raises UserError for a module that is not there or not given."""
    tree = ModuleTree(version.parent / "lib" / "modules" / version.read_text().strip())
    lists = read_names(modules, *MODULE_LISTS)
    for name in lists[ADOPTED]:
        path = tree.files.get(name.replace("-", "_"))
        if path is None and name.replace("-", "_") not in tree.builtin:
            raise UserError(f"{modules}: {ADOPTED}: no module {name} in {tree.directory.name}")
        if path and not _given(path.relative_to(tree.directory / "kernel").as_posix(), lists[ADOPTED_FILES]):
            raise UserError(f"{modules}: {ADOPTED}: found {name}, expected a module that {ADOPTED_FILES} gives")
    return lists[ADOPTED]


def _given(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def withheld(tree: Tree, modules: Path, version: Path) -> Iterator[str]:
    """A line for each module that the root's own lists name and that the guest does not get."""
    kernel = ModuleTree(version.parent / "lib" / "modules" / version.read_text().strip())
    patterns = given_modules(modules)
    for name in sorted(asked_modules(tree)):
        path = kernel.files.get(name.split()[0].replace("-", "_"))
        if path and not _given(path.relative_to(kernel.directory / "kernel").as_posix(), patterns):
            yield f"not put in: the module {name}, which the image's lists name: a measured guest needs none like it"


def given_modules(modules: Path) -> list[str]:
    """The list ``adopted_files`` of modules.yaml: patterns of paths below the kernel's directory of modules."""
    return read_names(modules, *MODULE_LISTS)[ADOPTED_FILES]


def kernel_modules(version: Path, tools: Path, scratch: Path, given: Sequence[str] = ("*",)) -> list[Entry]:
    """The modules of the unpacked kernel whose paths match a pattern of ``given``, as entries below lib/modules.

    The index files that modprobe needs are among them, made for these modules alone.
    """
    release = version.read_text().strip()
    source = version.parent / "lib" / "modules" / release
    if not source.is_dir():
        raise UserError(f"{source}: no kernel modules here", "run: ./doitw unpack_kernel")
    chosen = scratch / "chosen"
    shown = chosen / "lib" / "modules" / release
    for entry in directory_entries(source):
        below = entry.name.removeprefix("kernel/")
        if entry.kind is Kind.FILE and (below == entry.name or _given(below, given)):
            (shown / entry.name).parent.mkdir(parents=True, exist_ok=True)
            (shown / entry.name).symlink_to((source / entry.name).resolve())
    progress.step("depmod")
    run(
        [
            tools.resolve() / "depmod",
            *("-b", chosen.resolve()),
            *("-o", scratch.resolve()),
            *("-C", "/dev/null"),
            release,
        ]
    )
    found: dict[str, Entry] = {}
    for root, is_source in ((source, True), (scratch / "lib" / "modules" / release, False)):
        for entry in directory_entries(root):
            here = shown / entry.name
            if is_source and not (here.is_dir() or here.is_file()):
                continue
            mode = 0o755 if entry.kind is Kind.DIRECTORY else 0o644
            found[entry.name] = replace(entry, name=f"{MODULES}/{release}/{entry.name}", mode=mode)
    return list(found.values())
