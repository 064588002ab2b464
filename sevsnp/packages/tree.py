# SPDX-License-Identifier: Apache-2.0
"""build/snp-release: tools, firmware and kernel packages, unpacked to run in place; and packages as plain files."""

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from sevsnp.errors import UserError
from sevsnp.packages.deb import read_control
from sevsnp.packages.lock import Package
from sevsnp.packages.tree_digest import tree_digest
from sevsnp.packages.unpack import unpack_deb
from sevsnp.packages.wrappers import LOADER, write_wrappers
from sevsnp.system import progress
from sevsnp.system.files import scratch_directory, write_atomic

MANIFEST = "packages.json"
GUEST_KERNELS = "linux/guest"

# No program that runs in place reads these files. Copyright files stay, because the tree may be distributed.
_LEFT_OUT = (
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/doc-base",
    "usr/share/icons",
    "usr/share/applications",
    "usr/share/bash-completion",
    "usr/share/initramfs-tools",
    "usr/lib/systemd/system",
    "usr/lib/udev",
    "etc/cron.d",
    "etc/init.d",
)


def _wanted(path: PurePosixPath) -> bool:
    if path.is_relative_to("usr/share/doc"):
        return path.name == "copyright"
    return not any(path.is_relative_to(prefix) for prefix in _LEFT_OUT)


def manifest_text(sets: Mapping[str, Sequence[Package]], more: Mapping[str, Any] | None = None) -> str:
    """The manifest: by set, every package with version, file and SHA-256, sorted; and what ``more`` has."""
    listed = {
        name: [asdict(package) for package in sorted(sets[name], key=lambda package: package.name)]
        for name in sorted(sets)
    }
    return _as_json({"sets": listed, **(more or {})})


def sealed(document: Mapping[str, Any]) -> str:
    """The manifest of a release as text, with the SHA-256 of the text that it has without this digest."""
    return _as_json({**document, "manifest": hashlib.sha256(_as_json(document).encode()).hexdigest()})


def _as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def seal(tree: Path, sets: Mapping[str, Sequence[Package]], built: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of a finished release tree: ``sets``, the digest of everything else in ``tree``, and its own.

    ``built`` is the record of what was built from source.
    """
    more = {"built": dict(built)} if built else {}
    document = json.loads(manifest_text(sets, {**more, "tree": tree_digest(tree, MANIFEST)}))
    write_atomic(tree / MANIFEST, sealed(document))


def replace_tree(new: Path, target: Path, scratch: Path) -> None:
    """Put the finished directory ``new`` in the place of ``target``; the old directory goes to ``scratch``."""
    if target.is_symlink() or target.is_file():
        raise UserError(
            f"{target}: found a file, expected a directory or nothing", f"remove it: rm {shlex.quote(str(target))}"
        )
    if target.exists():
        target.rename(scratch / "old")
    new.rename(target)


@contextmanager
def _counted(what: str, packages: Sequence[Package]) -> Iterator[Callable[[Package], None]]:
    """Show the progress of work on ``packages``; the yielded function is called with each finished package."""
    with progress.amount(f"{what} {len(packages)} packages", sum(package.size for package in packages)) as shown:
        done: list[Package] = []

        def one(package: Package) -> None:
            done.append(package)
            shown(package.size)
            shown.what = f"{what} packages, {len(done)} of {len(packages)}"

        yield one


def make_release(
    *,
    tools: Mapping[Package, Path],
    firmware: Mapping[Package, Path],
    kernels: Mapping[Package, Path],
    output: Path,
) -> None:
    """Build the tree ``output`` from package files; it appears complete, with its manifest ``output``/packages.json.

    Tools and firmware are unpacked, kernel packages are copied to linux/guest/. Needs dpkg-deb, no root; the result
    does not depend on the umask or on the tree's location. Raises :class:`UserError` naming a damaged package.
    """
    with scratch_directory(output) as scratch:
        tree = scratch / "tree"
        tree.mkdir()
        tree.chmod(0o755)
        # bin is left out: the wrappers go there.
        for name in ("sbin", "lib", "lib64"):
            (tree / name).symlink_to(f"usr/{name}")
        with _counted("unpacking", [*tools, *firmware]) as unpacked:
            for package in sorted([*tools, *firmware], key=lambda package: package.name):
                unpack_deb(tools.get(package) or firmware[package], tree, _wanted)
                unpacked(package)
        if tools and not (tree / LOADER).exists():
            raise UserError(f"the set of tools has no {LOADER}", "name libc6, or a package that depends on it")
        write_wrappers(tree)
        directory = tree / GUEST_KERNELS
        for path in (directory.parent, directory):
            path.mkdir()
            path.chmod(0o755)
        copy_debs(kernels, directory)
        sets = {"tools": tuple(tools), "ovmf": tuple(firmware), "kernel": tuple(kernels)}
        seal(tree, sets)
        replace_tree(tree, output, scratch)


def copy_debs(debs: Mapping[Package, Path], directory: Path) -> None:
    """Copy packages into ``directory``. Copies, not links: a user who edits one there must not damage the cache."""
    for package, file in debs.items():
        target = directory / package.deb
        shutil.copyfile(file, target)
        target.chmod(0o644)


def export_debs(*, name: str, debs: Mapping[Package, Path], output: Path) -> None:
    """Write one set's packages as files: ``output``/NAME.deb, packages.json, and a Packages index.

    With the index, apt and mmdebstrap take the directory as a repository: ``deb [trusted=yes] copy:DIRECTORY ./``. The
    index has the digests of the lock, so apt checks each file again. ``output`` appears complete. Raises
    :class:`UserError`.
    """
    with scratch_directory(output) as scratch:
        new = scratch / "debs"
        new.mkdir()
        new.chmod(0o755)
        copy_debs(debs, new)
        stanzas = []
        with _counted(f"indexing {name}", list(debs)) as indexed:
            for package in sorted(debs, key=lambda package: package.name):
                control = read_control(new / package.deb).strip()
                place = f"Filename: ./{package.deb}\nSize: {package.size}\nSHA256: {package.sha256}\n"
                stanzas.append(f"{control}\n{place}")
                indexed(package)
        write_atomic(new / "Packages", "\n".join(stanzas))
        write_atomic(new / MANIFEST, manifest_text({name: tuple(debs)}))
        replace_tree(new, output, scratch)


def export_files(*, name: str, files: Mapping[Package, Path], output: Path) -> None:
    """Write one set's files, whatever they are, into the directory ``output``, with packages.json."""
    with scratch_directory(output) as scratch:
        new = scratch / "files"
        new.mkdir()
        new.chmod(0o755)
        copy_debs(files, new)
        write_atomic(new / MANIFEST, manifest_text({name: tuple(files)}))
        replace_tree(new, output, scratch)
