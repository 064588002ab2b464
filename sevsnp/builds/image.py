# SPDX-License-Identifier: Apache-2.0
"""What a build runs in: an image made of pinned Debian packages; or this machine, if it has the same packages.

`python -m sevsnp.builds.image [MIRROR]` pins the packages anew.
"""

import contextlib
import hashlib
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from sevsnp.builds.engines import LABEL, Engine
from sevsnp.builds.stages import Stage
from sevsnp.errors import UserError
from sevsnp.images.guest_packages import make_packages_layer
from sevsnp.packages.lock import Package, read_lock
from sevsnp.packages.pipeline import locked_files, refresh_lock
from sevsnp.packages.sets import PackageSet, read_sets
from sevsnp.system import progress
from sevsnp.system.command import find, run, temporary_directory
from sevsnp.system.command_failed import CommandFailed
from sevsnp.system.files import scratch_directory
from sevsnp.system.template import find_template, text_template

LIST, LOCK = Path("tasks/build-packages.yaml"), Path("tasks/build-packages.lock")
COMMON = "common"
# The programs of COMPILER_CACHE and COMPILER_CLUSTER: the image has all of them, a machine needs what is configured.
_OPTIONAL = frozenset({"ccache", "sccache", "distcc", "icecc"})
# Seconds. The engine unpacks a gigabyte.
_IMAGE_SECONDS = 1800.0


def pinned(listing: Path, lock: Path) -> tuple[Package, ...]:
    """Every package of the image. Raises :class:`UserError` if the lock is older than the list."""
    sets = read_sets(listing)
    found = read_lock(lock)
    try:
        found.check(sets)
    except UserError as error:
        # packages_lock is for the packages of the guests.
        raise UserError(error.message, "pin them again: .venv/bin/python -m sevsnp.builds.image") from None
    return tuple(dict.fromkeys(package for one in sets for package in found.packages(one.name)))


def image_digest(packages: Iterable[Package]) -> str:
    """What decides the image's content: its packages and its template."""
    template = find_template("packages/Containerfile.j2").read_bytes()
    lines = sorted(package.sha256 for package in packages)
    return hashlib.sha256("\n".join(lines).encode() + template).hexdigest()


def image_name(digest: str) -> str:
    return f"localhost/sevsnp-packages:{digest[:12]}"


def find_image(engine: Engine, digest: str) -> bool:
    """Whether the engine has the image. Raises :class:`UserError` if another image has its name."""
    name = image_name(digest)
    try:
        found = engine("image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', name)
    except CommandFailed:
        return False
    if found != digest:
        remove = shlex.join(engine.command("rmi", name))
        raise UserError(f"{name}: found an image of this name that this build did not make", f"remove it: {remove}")
    return True


def make_image(
    engine: Engine, *, listing: Path, lock: Path, cache_dir: Path, mirror: str, snapshot: str
) -> tuple[str, bool]:
    """Make the image if the engine does not have it; return its name, and whether it was made now.

    The packages come from the cache, else from the mirror; mmdebstrap installs them without a network.
    """
    packages = pinned(listing, lock)
    digest = image_digest(packages)
    name = image_name(digest)
    if find_image(engine, digest):
        return name, False
    with progress.amount("fetching packages") as shown:
        files = locked_files(
            read_lock(lock),
            packages,
            cache_dir=cache_dir,
            mirror=mirror,
            snapshot=snapshot,
            progress=lambda size, sizes, *_: shown.at(size, sizes),
        )
    with temporary_directory("sevsnp-image.") as scratch:
        rootfs = scratch / "rootfs.tar"
        make_packages_layer(sorted(files.values()), rootfs)
        load_image(engine, rootfs, digest, len(packages))
    return name, True


def load_image(engine: Engine, rootfs: Path, digest: str, packages: int) -> str:
    """Make the image of ``digest`` from the tar ``rootfs``, and return its name."""
    name = image_name(digest)
    template = text_template(find_template("packages/Containerfile.j2"))
    progress.step(f"loading the image into {engine.program}")
    with scratch_directory(rootfs.with_name("context")) as context:
        rootfs.rename(context / rootfs.name)
        text = template.render(rootfs=rootfs.name, label=LABEL, digest=digest, packages=packages)
        (context / "Containerfile").write_text(text)
        engine("build", "--tag", name, "--file", context / "Containerfile", context, timeout=_IMAGE_SECONDS)
    return name


def remove_images(engine: Engine, only: str = "") -> list[str]:
    """Remove the image ``only`` and that of the probe, or all that were made here; return the names of those removed.

    An image that another checkout's build uses stays.
    """
    label = f"{LABEL}=probe" if only else LABEL
    listed = engine("images", "--filter", f"label={label}", "--format", "{{.Repository}}:{{.Tag}}")
    removed = []
    for name in sorted({*listed.split(), *([only] if only else [])}):
        with contextlib.suppress(CommandFailed):
            engine("rmi", name)
            removed.append(name)
    return removed


def check_machine(stages: Iterable[Stage], programs: Iterable[str], listing: Path) -> str:
    """Refuse a machine that lacks packages which ``stages`` need; return what identifies its compiler.

    ``programs`` are those of COMPILER_CACHE and COMPILER_CLUSTER. Raises :class:`UserError` that names all missing.
    """
    sets = {one.name: one for one in read_sets(listing)}
    wanted = {COMMON, *(stage.packages for stage in stages)}
    names = {name for one in wanted for name in _of(sets, one, listing)} - _OPTIONAL | set(programs)
    if find("dpkg-query") is None:
        raise UserError(
            "dpkg-query: command not found; a build without a container needs Debian, Ubuntu or another derivative",
            "build in a container: ./doitw packages_build PACKAGES_SOURCE=container",
        )
    missing = sorted(names - _installed(names))
    if missing:
        raise UserError(
            f"not installed here: {', '.join(missing)}", f"run as root: apt-get install {shlex.join(missing)}"
        )
    return run(["gcc", "--version"]).decode().splitlines()[0]


def _of(sets: dict[str, PackageSet], name: str, listing: Path) -> tuple[str, ...]:
    if name not in sets:
        raise UserError(f"{listing}: found no set {name}, expected the one that a stage needs")
    return sets[name].packages


def _installed(names: Iterable[str]) -> set[str]:
    """Those of ``names`` that are installed, or provided by what is (pkgconf is pkg-config in older releases)."""
    form = "${db:Status-Status}|${Package}|${Provides}\n"
    found = set()
    for line in run(["dpkg-query", "--show", f"--showformat={form}"]).decode(errors="replace").splitlines():
        status, _, rest = line.partition("|")
        package, _, provided = rest.partition("|")
        if status == "installed":
            found |= {package, *(each.split()[0] for each in provided.split(",") if each.strip())}
    return found & set(names)


def update_lock(mirror: str = "") -> None:
    """Pin the packages of the image anew. Uses the network."""
    refresh_lock(sets=read_sets(LIST), mirror=mirror, output=LOCK)


if __name__ == "__main__":
    update_lock(*sys.argv[1:2])
