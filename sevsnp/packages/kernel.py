# SPDX-License-Identifier: Apache-2.0
"""build/kernel: a kernel package split into the files that later steps need."""

import re
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from sevsnp.errors import UserError
from sevsnp.packages.deb import member_path, open_content, read_field
from sevsnp.packages.tree import replace_tree
from sevsnp.packages.unpack import ODD_ENTRY, unpack_member
from sevsnp.system.files import scratch_directory, write_atomic

VERSION_FILE = "version"
_HINT = "give a linux-image package for amd64, with its modules, as KERNEL_DEB="
# Linux Documentation/arch/x86/boot.rst: "HdrS" at 0x202 marks a bzImage.
_BZIMAGE_OFFSET, _BZIMAGE_MAGIC = 0x202, b"HdrS"


def _boot_file(path: PurePosixPath) -> tuple[str, str] | None:
    """The name and version of a file of /boot: ``("vmlinuz", "6.12.1-amd64")``; None for any other file."""
    match = re.fullmatch(r"(vmlinuz|config|System\.map)-([A-Za-z0-9.+~_-]+)", path.name)
    return (match[1], match[2]) if match and path.parent == PurePosixPath("boot") else None


def _modules(path: PurePosixPath) -> PurePosixPath | None:
    """The path below lib/modules; None for any other file."""
    for prefix in ("usr/lib/modules", "lib/modules"):
        if path.is_relative_to(prefix):
            return path.relative_to(prefix)
    return None


def _linked(target: str) -> PurePosixPath:
    """The target of a hard link, below lib/modules. Raises ValueError for any other target."""
    if (below := _modules(member_path(target))) is None:
        raise ValueError(target)
    return below


def _extract(deb: Path, tree: Path) -> tuple[list[str], set[str]]:
    """Unpack the wanted files. Returns the versions of the kernels and those of the module trees in the package."""
    kernels: list[str] = []
    modules: set[str] = set()
    with open_content(deb) as tar:
        for member in tar:
            try:
                path = member_path(member.name)
            except ValueError:
                raise UserError(f"{deb}: {member.name}: unexpected path in the package", _HINT) from None
            if boot := _boot_file(path):
                if not member.isfile():
                    raise UserError(f"{deb}: {path}: expected a plain file", _HINT)
                if boot[0] == "vmlinuz":
                    kernels.append(boot[1])
                _copy(tar, member, tree / boot[0])
            elif below := _modules(path):
                # build and source point to header packages, which are not installed here.
                if not below.parts or (below.name in ("build", "source") and len(below.parts) == 2):
                    continue
                modules.add(below.parts[0])
                member.name = f"modules/{below}"
                try:
                    if member.islnk():
                        member.linkname = f"modules/{_linked(member.linkname)}"
                    unpack_member(tar, member, tree)
                except ODD_ENTRY as error:
                    raise UserError(f"{deb}: {path}: unexpected path in the package", _HINT) from error
    return kernels, modules


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None, member.name
    with target.open("wb") as stream:
        shutil.copyfileobj(source, stream, 1 << 20)
    target.chmod(0o644)


def unpack_kernel(*, deb: Path, output: Path) -> str:
    """Unpack a linux-image package into ``output``, which appears complete; return the kernel's version.

    ``output`` gets vmlinuz, config, System.map (if the package has it), lib/modules/VERSION as shipped, and the file
    ``version`` with the version and a newline. Raises :class:`UserError` for a package that is damaged, is not for
    amd64, or does not hold exactly one kernel with its modules.
    """
    if not (package := read_field(deb, "Package")).startswith("linux-image"):
        raise UserError(f"{deb}: found the package {package}, expected a linux-image package", _HINT)
    if (architecture := read_field(deb, "Architecture")) != "amd64":
        raise UserError(f"{deb}: found architecture {architecture}, expected amd64", _HINT)
    with scratch_directory(output) as scratch:
        new = (scratch / "kernel").resolve()
        new.mkdir()
        new.chmod(0o755)
        kernels, modules = _extract(deb, new)
        if len(kernels) != 1:
            raise UserError(f"{deb}: found {len(kernels)} files boot/vmlinuz-VERSION, expected one", _HINT)
        version = kernels[0]
        with (new / "vmlinuz").open("rb") as stream:
            stream.seek(_BZIMAGE_OFFSET)
            if stream.read(4) != _BZIMAGE_MAGIC:
                raise UserError(f"{deb}: boot/vmlinuz-{version} is not an x86 kernel image (bzImage)", _HINT)
        if modules != {version}:
            found = ", ".join(sorted(modules)) or "none"
            raise UserError(f"{deb}: found modules for {found}, expected them for {version}", _HINT)
        for path in (new / "config", new / "modules" / version / "modules.builtin"):
            if not path.is_file():
                raise UserError(f"{deb}: {path.name} is missing, expected it beside the kernel {version}", _HINT)
        (new / "lib").mkdir()
        (new / "lib").chmod(0o755)
        (new / "modules").rename(new / "lib" / "modules")
        write_atomic(new / VERSION_FILE, f"{version}\n")
        replace_tree(new, output, scratch)
    return version
