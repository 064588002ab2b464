# SPDX-License-Identifier: Apache-2.0
"""The kernel's modules in the root of an adopted image, and the list of those that the guest loads."""

from dataclasses import replace
from pathlib import Path

from sevsnp.archives.rootfs import directory_entries
from sevsnp.archives.tar import Entry, Kind
from sevsnp.errors import UserError
from sevsnp.images.initramfs import ADOPTED, MODULE_LISTS
from sevsnp.images.kernel_modules import ModuleTree
from sevsnp.images.lists import read_names
from sevsnp.system import progress
from sevsnp.system.command import run

MODULES = "lib/modules"
# init loads the modules named in this file and similar ones (initramfs/device_lock.py). Then the kernel refuses more.
LIST = "etc/modules-load.d/guest-vm.conf"


def loaded_modules(modules: Path, version: Path) -> list[str]:
    """The list ``adopted`` of modules.yaml. Raises UserError for a module that this kernel does not have."""
    tree = ModuleTree(version.parent / "lib" / "modules" / version.read_text().strip())
    names = read_names(modules, *MODULE_LISTS)[ADOPTED]
    for name in names:
        if name.replace("-", "_") not in tree.files.keys() | tree.builtin:
            raise UserError(f"{modules}: {ADOPTED}: no module {name} in {tree.directory.name}")
    return names


def kernel_modules(version: Path, tools: Path, scratch: Path) -> list[Entry]:
    """The modules of the unpacked kernel as entries below lib/modules, with the index files that modprobe needs."""
    release = version.read_text().strip()
    source = version.parent / "lib" / "modules" / release
    if not source.is_dir():
        raise UserError(f"{source}: no kernel modules here", "run: ./doitw unpack_kernel")
    progress.step("depmod")
    run(
        [
            tools.resolve() / "depmod",
            *("-b", version.parent.resolve()),
            *("-o", scratch.resolve()),
            *("-C", "/dev/null"),
            release,
        ]
    )
    found: dict[str, Entry] = {}
    for root in (source, scratch / "lib" / "modules" / release):
        for entry in directory_entries(root):
            mode = 0o755 if entry.kind is Kind.DIRECTORY else 0o644
            found[entry.name] = replace(entry, name=f"{MODULES}/{release}/{entry.name}", mode=mode)
    return list(found.values())
