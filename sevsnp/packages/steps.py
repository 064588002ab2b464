"""The steps of the pipeline that deal with packages, as tasks call them: files in, files out."""

from pathlib import Path

from sevsnp import progress
from sevsnp.errors import UserError
from sevsnp.packages.kernel import unpack_kernel
from sevsnp.packages.pipeline import packages, project_sets, refresh_lock


def make_packages(
    *,
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
) -> None:
    """Fetch everything ``lock`` pins for the four lists; write the release tree and the package directories."""
    progress.step("unpacking")  # shown once all is fetched
    with progress.amount("fetching") as fetched:
        packages(
            lock=lock,
            sets=project_sets(tools=tools, initramfs=initramfs, guest=guest, appliance=appliance),
            release=release,
            debs={"initramfs": initramfs_debs, "guest": guest_debs, "appliance": appliance_debs},
            cache_dir=Path(cache_dir),
            mirror=mirror,
            snapshot=snapshot,
            progress=fetched.at,
        )


def update_lock(*, tools: Path, initramfs: Path, guest: Path, appliance: Path, mirror: str, output: Path) -> None:
    """Resolve the four lists anew and write ``output``."""
    sets = project_sets(tools=tools, initramfs=initramfs, guest=guest, appliance=appliance)
    refresh_lock(sets=sets, mirror=mirror, output=output)


def make_kernel(*, release: Path, output: Path, deb: Path | None = None) -> None:
    """Unpack ``deb``, or the one kernel package of the release tree."""
    if deb is None:
        found = sorted((release / "linux" / "guest").glob("linux-image-*.deb"))
        if len(found) != 1:
            raise UserError(f"{release}/linux/guest: found {len(found)} linux-image packages, expected one")
        deb = found[0]
    unpack_kernel(deb=deb, output=output)
