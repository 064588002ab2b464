# SPDX-License-Identifier: Apache-2.0
"""The step `packages` with PACKAGES_SOURCE=container or local: build/snp-release with what was built from source."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.packages.deb import read_control
from sevsnp.packages.fetch import Kept
from sevsnp.packages.lock import Package
from sevsnp.packages.release_archive import check_release
from sevsnp.packages.steps import make_packages
from sevsnp.packages.tree import GUEST_KERNELS, seal
from sevsnp.system.files import sha256_file

RECORD = "built.json"
FETCH = "fetch a finished build: ./doitw packages_fetch"
# What a stage has made, and its place in the release. The gate judges the firmware there, as any other.
_FILES = {
    "ovmf/OVMF.fd": "usr/share/ovmf/OVMF.amdsev.fd",
    "qemu/usr/bin/qemu-system-x86_64": "usr/bin/qemu-system-x86_64",
}
_HOST_KERNELS = "linux/host"


def make_packages_from_build(
    *,
    built: Path,
    lock: Path,
    tools: Path,
    initramfs: Path,
    guest: Path,
    appliance: Path,
    cache_dir: str,
    mirror: str,
    snapshot: str,
    release: Path,
    initramfs_debs: Path,
    guest_debs: Path,
    appliance_debs: Path,
    kept: Kept | None = None,
) -> None:
    """Write ``release`` from the lock, and put what is in ``built`` (made by packages_fetch) in the place of Debian's.

    A stage that was not built keeps Debian's. Raises :class:`UserError` before anything is fetched if ``built`` is not
    as packages_fetch has written it.
    """
    check_built(built)
    make_packages(
        lock=lock,
        tools=tools,
        initramfs=initramfs,
        guest=guest,
        appliance=appliance,
        cache_dir=cache_dir,
        mirror=mirror,
        snapshot=snapshot,
        release=release,
        initramfs_debs=initramfs_debs,
        guest_debs=guest_debs,
        appliance_debs=appliance_debs,
        kept=kept,
    )
    overlay(built, release)


def check_built(built: Path) -> Mapping[str, Any]:
    """The record of ``built``. Raises :class:`UserError` for a missing one, and for files that are not as recorded."""
    try:
        record = json.loads((built / RECORD).read_text())
        files = dict(record["files"])
    except FileNotFoundError:
        raise UserError(f"{built / RECORD}: no such file, expected what packages_fetch writes", FETCH) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{built / RECORD}: damaged: {error}", FETCH) from None
    for name, digest in sorted(files.items()):
        path = built / name
        if not path.is_file() or sha256_file(path) != digest:
            raise UserError(f"{path}: not as it was built: expected SHA-256 {digest}", FETCH)
    assert isinstance(record, dict)
    return record


def overlay(built: Path, release: Path) -> None:
    """Replace in the tree ``release`` what ``built`` has, and seal it again."""
    sets = dict(check_release(release, str(release)))
    for name, place in _FILES.items():
        if (built / name).is_file():
            _copy(built / name, release / place, 0o755 if "/bin/" in name else 0o644)
    if guest := _kernel(built / "guest-kernel"):
        directory = release / GUEST_KERNELS
        for path in directory.glob("linux-image-*.deb"):
            path.unlink()
        _copy(guest, directory / guest.name)
        sets["kernel"] = (_described(guest, sets["kernel"][0]),)
    if host := _kernel(built / "host-kernel"):
        (release / _HOST_KERNELS).mkdir(exist_ok=True)
        _copy(host, release / _HOST_KERNELS / host.name)
    _copy(built / RECORD, release / RECORD)
    seal(release, sets)


def _copy(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # it may be a link
    shutil.copyfile(source, target)
    target.chmod(mode)


def _kernel(directory: Path) -> Path | None:
    found = sorted(directory.glob("linux-image-*.deb"))
    if len(found) > 1:
        raise UserError(f"{directory}: found {len(found)} linux-image packages, expected one", FETCH)
    return found[0] if found else None


def _described(deb: Path, before: Package) -> Package:
    """The entry of a package that was built here, in the place of Debian's."""
    control = dict(line.split(": ", 1) for line in read_control(deb).splitlines() if ": " in line)
    return replace(
        before,
        name=control["Package"],
        version=control["Version"],
        archive="built",
        filename=f"{GUEST_KERNELS}/{deb.name}",
        size=deb.stat().st_size,
        sha256=sha256_file(deb),
    )
