# SPDX-License-Identifier: Apache-2.0
"""The initramfs in layers: separately compressed cpio archives that the kernel unpacks one over the other.

Base packages seldom change, modules change with the kernel, init changes all the time. The initramfs is the
concatenation of the layers, so that an edit of init rebuilds only a few kilobytes.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Entry, read_tar
from sevsnp.images.kernel_modules import ModuleTree
from sevsnp.images.kernel_needs import check_kernel
from sevsnp.images.lists import layer_files, read_files_list, read_names
from sevsnp.images.python_library import listed_modules
from sevsnp.system.command import run
from sevsnp.system.files import CHUNK, scratch_directory

# Higher levels take many times longer and save almost nothing.
_LEVEL = 9
MEASURED = ("base", "luks")
ADOPTED = "adopted"  # in no layer: for the roots of foreign images
ADOPTED_FILES = "adopted_files"  # patterns of the modules in these roots
MODULE_LISTS = (*MEASURED, "appliance", "emulated", ADOPTED, ADOPTED_FILES)
MERGED = ("bin", "sbin", "lib", "lib64")


def make_packages_layer(*, manifest: Path, files: Path, output: Path) -> None:
    """The files of a set of packages, only unpacked (no maintainer script runs), without those that match ``exclude``.

    ``manifest`` lies beside the packages; ``files`` is files.yaml. Of Python's library there is what ``python`` lists.
    """
    lists = read_files_list(files)
    entries = [link_entry(name, f"usr/{name}") for name in MERGED]
    entries += [directory_entry(f"usr/{name}") for name in MERGED]
    with scratch_directory(output) as scratch, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:

        def unpacked(deb: Path) -> Path:
            tar = scratch / f"{deb.name}.tar"
            tar.write_bytes(run(["dpkg-deb", "--fsys-tarfile", deb]))
            return tar

        for tar in pool.map(unpacked, sorted(manifest.parent.glob("*.deb"))):
            entries += _wanted(read_tar(tar).values(), lists["exclude"])
        entries = listed_modules(entries, lists["python"], f"{files}: python", scratch / "python")
        write_layer(with_parents(entries), output)


def _wanted(entries: Iterable[Entry], exclude: Sequence[str]) -> list[Entry]:
    """The entries without the excluded ones, in the merged-/usr layout: /bin, /sbin and /lib* are links into /usr."""
    found = []
    for entry in entries:
        first, slash, _ = entry.name.partition("/")
        name = f"usr/{entry.name}" if first in MERGED and slash else entry.name
        if name not in MERGED and not any(fnmatch(name, pattern) for pattern in exclude):
            found.append(replace(entry, name=name))
    return found


def make_modules_layer(*, version: Path, modules: Path, lists: Sequence[str], output: Path) -> None:
    """The modules that ``modules`` lists under each of ``lists``, with their dependencies, decompressed.

    NAME.list has the order in which to load them. Modules of the measured layer (``base`` and ``luks``) are not packed
    into another layer again. ``version`` is the file in the unpacked kernel that names its release; the modules are
    beside it. Raises UserError for a kernel that lacks what a measured guest needs.
    """
    release = version.read_text().strip()
    tree = ModuleTree(version.parent / "lib" / "modules" / release)
    if "base" in lists:
        check_kernel(version.with_name("config"), release)
    listed = read_names(modules, *MODULE_LISTS)
    place = "usr/lib/sevsnp/modules"
    base = tree.closure(listed["base"], f"{modules}: base")
    entries: list[Entry] = []
    packed: set[str] = set()
    for name in dict.fromkeys((*MEASURED, *lists)):
        images = tree.closure(listed[name], f"{modules}: {name}")
        # Every list is loaded after that of the base, and perhaps without any other list.
        own = [module for module in images if name == "base" or module not in base]
        if name in lists:
            entries += [text_entry(f"{place}/{module}.ko", images[module]) for module in own if module not in packed]
            entries.append(text_entry(f"{place}/{name}.list", "".join(f"/{place}/{module}.ko\n" for module in own)))
        packed |= images.keys()
    write_layer(with_parents(entries), output)


def make_files_layer(*, files: Path, sources: Sequence[Path], layer: str, output: Path) -> None:
    """Our own files, as ``files`` (files.yaml) lists them under ``layer``; ``sources`` are those files, in order."""
    directories = read_files_list(files)["directories"] if layer in ("init", "plain", "appliance") else []
    entries = [directory_entry(name) for name in directories]
    for item, source in zip(layer_files(files, layer), sources, strict=True):
        entries.append(text_entry(item["path"], source.read_bytes(), int(item.get("mode", "0644"), 8)))
    write_layer(with_parents(entries), output)


def join_layers(*, layers: Sequence[Path], output: Path) -> None:
    """Concatenate layers; the kernel unpacks them in order, later files over earlier ones."""
    with output.open("wb") as stream:
        for layer in layers:
            with layer.open("rb") as source:
                shutil.copyfileobj(source, stream, CHUNK)
            # The kernel looks for the next archive at a multiple of four bytes.
            stream.write(b"\0" * (-stream.tell() % 4))


def write_layer(entries: Iterable[Entry], output: Path) -> None:
    """Write the entries, in the given order, as a compressed cpio archive."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=False)
    with output.open("wb") as raw, compressor.stream_writer(raw, closefd=False) as stream:
        write_cpio(entries, cast(BinaryIO, stream))
