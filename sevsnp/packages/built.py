# SPDX-License-Identifier: Apache-2.0
"""build/snp-release with what was built from source in it; everything else is from the pinned packages.

The directory of built files has a directory for each stage of the build that ran, and a record with their digests.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.packages.lock import Package, read_lock
from sevsnp.packages.pipeline import FIRMWARE, KERNEL, TOOLS
from sevsnp.packages.release_archive import FIRMWARE as FIRMWARE_FILE
from sevsnp.packages.steps import Pinned
from sevsnp.packages.tree import GUEST_KERNELS, MANIFEST, replace_tree, seal
from sevsnp.system.files import each_key_once, scratch_directory, sha256_file

RECORD = "built.json"
HOST_KERNELS = "linux/host"
_HOW = "see docs/packages.md: how it is built and fetched"
# The stages, and for each the package whose files it replaces; the kernel's set is replaced as a whole.
_STAGES = {"qemu": "qemu-system-x86", "ovmf": "ovmf-amdsev", "guest-kernel": "", "host-kernel": ""}


def make_packages_with_built(*, release: Path, built: Path, **given: Any) -> None:
    """Write the trees of ``sevsnp.packages.steps:make_packages``, with the files in ``built`` in the ``release`` tree.

    ``given`` are the fields of :class:`Pinned`. Raises :class:`UserError` if ``built`` is missing, or not as it was
    fetched, before anything is replaced.
    """
    pinned = Pinned(**given)
    record = read_built(built)
    with scratch_directory(release) as scratch:
        tree = scratch / "tree"
        pinned.write(tree)
        lock = read_lock(pinned.lock)
        add_built(tree, built, {name: lock.packages(name) for name in (TOOLS, FIRMWARE, KERNEL)}, record)
        replace_tree(tree, release, scratch)


def read_built(built: Path) -> Mapping[str, Any]:
    """The record of the directory ``built``, which must be as it was fetched. Raises :class:`UserError`."""
    place = built / RECORD
    try:
        record = json.loads(place.read_bytes(), object_pairs_hook=each_key_once)
        files = dict(record["files"])
    except FileNotFoundError:
        raise UserError(f"{place}: no such file, expected the result of a build from source", _HOW) from None
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{place}: not the record of a build: {error!r}", _HOW) from None
    found = {path.relative_to(built).as_posix(): path for path in built.rglob("*") if path.is_file()}
    del found[RECORD]
    for name in sorted(files.keys() | found.keys()):
        if name.partition("/")[0] not in _STAGES:
            raise UserError(f"{built}: found {name}, expected files of the stages {', '.join(_STAGES)}", _HOW)
        if name not in found or sha256_file(found[name]) != files.get(name):
            raise UserError(f"{built}: {name} differs from what {RECORD} says", _HOW)
    return dict(record)


def add_built(
    tree: Path, built: Path, sets: Mapping[str, Sequence[Package]], record: Mapping[str, Any] | None = None
) -> None:
    """Put the files of ``built`` into the release ``tree``, and seal it anew.

    The manifest then has ``sets`` without the packages that were replaced, and ``record`` as ``built``. Modes become
    0755 or 0644. Raises :class:`UserError` for a file whose place in the tree is no place for a file.
    """
    stages = [stage for stage in _STAGES if (built / stage).is_dir()]
    left = {name: [one for one in listed if one.name not in map(_STAGES.get, stages)] for name, listed in sets.items()}
    if "qemu" in stages:
        for path in sorted((built / "qemu").rglob("*")):
            if not path.is_dir() or path.is_symlink():
                _put(path, tree, path.relative_to(built / "qemu").as_posix())
    if "ovmf" in stages:
        _put(built / "ovmf" / "OVMF.fd", tree, FIRMWARE_FILE)
    for stage, place in (("guest-kernel", GUEST_KERNELS), ("host-kernel", HOST_KERNELS)):
        if stage in stages:
            shutil.rmtree(tree / place, ignore_errors=True)
            for path in sorted((built / stage).glob("*.deb")):
                _put(path, tree, f"{place}/{path.name}")
            left = {**left, KERNEL: []} if place == GUEST_KERNELS else left
    (tree / MANIFEST).unlink(missing_ok=True)
    seal(tree, left, record)


def _put(source: Path, tree: Path, name: str) -> None:
    target, root = tree / name, tree.resolve()
    for above in reversed(Path(name).parents):
        directory = tree / above
        if not directory.resolve().is_relative_to(root):
            raise UserError(f"{source}: {above} is a link out of the tree, expected a directory")
        if not directory.is_dir():
            directory.mkdir()
            directory.chmod(0o755)
    if target.is_dir() and not target.is_symlink():
        raise UserError(f"{source}: found a directory at {name}, expected a file or nothing")
    target.unlink(missing_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
    else:
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
