"""The steps of the pipeline that deal with packages, as tasks call them: files in, files out."""

import time
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.packages.kernel import unpack_kernel
from sevsnp.packages.pipeline import packages, project_sets, refresh_lock

_SECONDS_BETWEEN_LINES = 5.0


class _Downloaded:
    """Says now and then how far a download is, in lines that suit a log as well as a terminal."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if done == total or time.monotonic() > self._said + _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(f"  fetched {done >> 20} of {total >> 20} MiB", flush=True)


def make_packages(
    *,
    lock: Path,
    tools: Path,
    initramfs: Path,
    guest: Path,
    cache_dir: str,
    mirror: str,
    snapshot: str,
    release: Path,
    initramfs_debs: Path,
    guest_debs: Path,
) -> None:
    """Fetch everything ``lock`` pins for the three lists; write the release tree and the package directories."""
    packages(
        lock=lock,
        sets=project_sets(tools=tools, initramfs=initramfs, guest=guest),
        release=release,
        debs={"initramfs": initramfs_debs, "guest": guest_debs},
        cache_dir=Path(cache_dir),
        mirror=mirror,
        snapshot=snapshot,
        progress=_Downloaded(),
    )


def update_lock(*, tools: Path, initramfs: Path, guest: Path, mirror: str, output: Path) -> None:
    """Resolve the three lists anew and write ``output``."""
    refresh_lock(sets=project_sets(tools=tools, initramfs=initramfs, guest=guest), mirror=mirror, output=output)


def make_kernel(*, release: Path, output: Path, deb: Path | None = None) -> None:
    """Unpack ``deb``, or the one kernel package of the release tree."""
    if deb is None:
        found = sorted((release / "linux" / "guest").glob("linux-image-*.deb"))
        if len(found) != 1:
            raise UserError(f"{release}/linux/guest: found {len(found)} linux-image packages, expected one")
        deb = found[0]
    unpack_kernel(deb=deb, output=output)
