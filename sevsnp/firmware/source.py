# SPDX-License-Identifier: Apache-2.0
"""Our firmware from source: prepare edk2's source tree, and build OVMF.fd from it.

The source is Debian's: the original archive, Debian's patches, and then our own changes
(templates/firmware/changes.yaml). templates/packages/ovmf.sh builds; it needs only the prepared tree and a compiler.
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath, PurePosixPath

from sevsnp.errors import UserError
from sevsnp.firmware.changes import apply_changes, read_changes
from sevsnp.firmware.gate import find_roads
from sevsnp.firmware.known import OURS_FROM_SOURCE
from sevsnp.firmware.patches import apply_series
from sevsnp.system import progress
from sevsnp.system.command import find, run

# The directories of the source that the build reads.
PARTS = (
    "BaseTools",
    "CryptoPkg",
    "EmbeddedPkg",
    "MdeModulePkg",
    "MdePkg",
    "NetworkPkg",
    "OvmfPkg",
    "PcAtChipsetPkg",
    "SecurityPkg",
    "ShellPkg",
    "SourceLevelDebugPkg",
    "UefiCpuPkg",
)
# Parts of them that nothing is built from.
LEFT_OUT = (
    "CryptoPkg/Library/OpensslLib/OpensslGen/providers/implementations",
    *(f"CryptoPkg/Library/OpensslLib/openssl/{name}" for name in ("apps", "demos", "doc", "fuzz", "ssl", "test")),
    *(f"CryptoPkg/Library/MbedTlsLib/mbedtls/{name}" for name in ("docs", "programs", "tests")),
)
# What the script starts; a machine without the pinned tools lacks one of them.
TOOLS: Mapping[str, str] = {"gcc": "gcc", "make": "make", "nasm": "nasm", "iasl": "acpica-tools", "python3": "python3"}
TIMEOUT = 3600.0  # seconds; two minutes of one idle core


def prepare_tree(*, sources: Path, changes: Path, output: Path) -> None:
    """Unpack edk2's source from the directory ``sources``, apply Debian's patches and the table ``changes``.

    ``sources`` has one file NAME.orig.tar.* and one NAME.debian.tar.*, whose digests were checked. ``output`` is the
    new tree. Raises :class:`UserError` for damaged archives, and for a source that is not as the table expects it.
    """
    original, packaging = (_one(sources, pattern) for pattern in ("*.orig.tar.*", "*.debian.tar.*"))
    output.mkdir(parents=True)
    debian = output.with_name(f"{output.name}.debian")
    try:
        _unpack(original, output, PARTS, strip=1)
        _unpack(packaging, debian, ("debian",), strip=0)
        apply_series(debian / "debian/patches", output, _is_built)
    finally:
        shutil.rmtree(debian, ignore_errors=True)
    apply_changes(read_changes(changes), output)


def _is_built(path: PurePosixPath) -> bool:
    return path.parts[0] in PARTS and not any(path.is_relative_to(name) for name in LEFT_OUT)


def _one(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise UserError(f"{directory}: found {len(found)} files {pattern}, expected one")
    return found[0]


def _unpack(archive: Path, target: Path, parts: Iterable[str], strip: int) -> None:
    """Unpack the members of ``archive`` below ``parts``; ``strip`` leading directories are left out."""
    wanted = frozenset(parts)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(*PurePosixPath(member.name).parts[strip:])
                if not path.parts or path.parts[0] not in wanted or any(map(path.is_relative_to, LEFT_OUT)):
                    continue
                # The source has no links that the build needs, and no link may lead a later file out of the tree.
                if member.isfile() or member.isdir():
                    member.name = str(path)
                    tar.extract(member, target, set_attrs=False, filter="data")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{archive}: damaged archive: {error}") from error
    if missing := sorted(name for name in wanted if not (target / name).is_dir()):
        raise UserError(f"{archive}: has no {', '.join(missing)}: not the expected source")


def build_firmware(*, tree: Path, script: Path, work: Path, output: Path, jobs: int = 0) -> None:
    """Build ``output`` from the prepared ``tree`` with this machine's own compiler.

    ``script`` is templates/packages/ovmf.sh. ``work`` keeps what was built, for a faster next build; ``jobs`` is the
    number of compilers at once, 0 for one per CPU. Another compiler than the pinned one gives other bytes, which
    :func:`check_made` refuses. Raises :class:`UserError` for a missing tool and for a failed build.
    """
    for program, package in TOOLS.items():
        if find(program) is None:
            raise UserError(
                f"{program}: command not found, needed to build the firmware", f"run: apt-get install {package}"
            )
    work.mkdir(parents=True, exist_ok=True)
    progress.step("compiling the firmware")
    run(
        ["bash", script.absolute()],
        env=script_variables(tree.absolute(), work.absolute(), output.absolute(), jobs),
        timeout=TIMEOUT,
    )


def script_variables(tree: PurePath, work: PurePath, output: PurePath, jobs: int) -> dict[str, str]:
    """The variables that the script reads."""
    count = jobs or len(os.sched_getaffinity(0))
    return {"SOURCES": str(tree), "WORK": str(work), "OUT": str(output), "JOBS": str(count)}


def check_made(image: Path) -> None:
    """Raises :class:`UserError` unless ``image`` is the pinned result, and the gate finds no fault with it."""
    data = image.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != OURS_FROM_SOURCE:
        raise UserError(
            f"{image}: built with SHA-256 {found}, expected {OURS_FROM_SOURCE}: source, changes or compiler differ",
            "restore them: git checkout packages.lock sources.lock templates",
        )
    if roads := find_roads(data):
        raise UserError(f"{image}: the change is not complete: {roads[0]}")
