# SPDX-License-Identifier: Apache-2.0
"""The functions behind the tasks packages_image, packages_build, packages_status, packages_fetch, packages_clean."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from sevsnp.builds import image
from sevsnp.builds.detached import end_marked
from sevsnp.builds.engines import Engine, find_engine, is_absent
from sevsnp.builds.place import CLEAN, STATUS, Place, Plan, read_plan
from sevsnp.builds.recipe import Compilers
from sevsnp.builds.stages import STAGES, Stage, chosen
from sevsnp.builds.start import (
    CONTAINER,
    LOCAL,
    Environment,
    Inputs,
    default_jobs,
    find_environment,
    missing_results,
    refuse_running,
    start,
)
from sevsnp.builds.state import Phase, Status, look, tail
from sevsnp.errors import UserError
from sevsnp.packages.built import RECORD
from sevsnp.packages.tree import replace_tree
from sevsnp.system.command_failed import CommandFailed
from sevsnp.system.files import remove_tree, scratch_directory, sha256_file, write_atomic

_FETCH = "when it is done: ./doitw packages_fetch"
_LINES = 12


def _build(road: str) -> str:
    return f"run: ./doitw packages_build PACKAGES_SOURCE={road}"


def _first_build(source: str) -> str:
    return _build(source if source in (CONTAINER, LOCAL) else CONTAINER)


def _require(source: str, *roads: str) -> None:
    if source not in roads:
        raise UserError(
            f"PACKAGES_SOURCE={source}: expected {' or '.join(roads)}: nothing is built for {source}",
            f"name one: ./doitw packages_build PACKAGES_SOURCE={roads[0]}",
        )


def make_image(
    *, source: str, pins: Path, listing: Path, lock: Path, cache_dir: str, mirror: str, snapshot: str
) -> None:
    """Make the image of PACKAGES_SOURCE=container, unless the engine has it."""
    _require(source, CONTAINER)
    name, made = image.make_image(
        find_engine(), listing=listing, lock=lock, cache_dir=Path(cache_dir), mirror=mirror, snapshot=snapshot
    )
    print(f"{name}: {'made' if made else 'is there already'}")
    print("next: ./doitw packages_build PACKAGES_SOURCE=container")


def build(
    *,
    source: str,
    pin: str,
    commit_date: str,
    root: Path,
    pins: Path,
    listing: Path,
    lock: Path,
    cache_dir: str,
    mirror: str,
    snapshot: str,
    jobs: int,
    cache: str,
    cluster: str,
    hosts: str,
    only: str = "",
    configure: bool = False,
    environment: Environment | None = None,
    table: Sequence[Stage] = STAGES,
) -> None:
    """Start the build and return. ``only`` names some stages; with ``configure`` each stops once it is configured.

    ``environment`` and ``table`` are found by themselves if they are not given.
    """
    _require(source, CONTAINER, LOCAL)
    stages = chosen(only, tuple(table))
    compilers = Compilers(jobs or default_jobs(), cache, cluster, hosts)
    compilers.check()
    place = Place(root)
    refuse_running(place)
    inputs = Inputs(pins, listing, lock, Path(cache_dir), mirror, snapshot)
    status = start(
        place,
        environment or find_environment(source, inputs, stages, compilers),
        inputs,
        stages,
        pin=pin,
        commit_date=commit_date,
        compilers=compilers,
        configure_only=configure,
    )
    assert status.plan
    kept = [name for name in status.plan.stages if name not in status.plan.run]
    if kept:
        print(f"done before, from the same sources: {', '.join(kept)}")
    if status.plan.run:
        where = status.plan.container or f"process {status.plan.pid}"
        print(f"{', '.join(status.plan.run)}: being built ({where}); {STATUS}")
    print(_FETCH)


def report(*, root: Path, source: str = CONTAINER) -> None:
    """Print the stage, its progress and the end of its log; it needs no terminal that was there at the start.

    Without a build it says how to start one, with PACKAGES_SOURCE=``source`` if that is built.
    """
    place = Place(root)
    status = look(place)
    if status.plan is None:
        print(f"{status.phase.value}; {_first_build(source)}")
        return
    for line in describe(status):
        print(line)
    if status.stage:
        for line in tail(place, status.stage).splitlines()[-_LINES:]:
            print(f"  | {line}")
        print(f"whole log: {place.log(status.stage)}")
    if status.phase is Phase.DONE:
        print("next: ./doitw packages_fetch")


def describe(status: Status) -> list[str]:
    """The state in a few lines."""
    plan = status.plan
    assert plan
    where = plan.container or f"process {plan.pid}"
    lines = [f"{plan.road} build of {plan.pin} sources ({where}): {status.phase.value}"]
    if status.stage:
        steps = f", step {status.steps[0]} of {status.steps[1]}" if status.steps else ""
        lines.append(f"stage {status.stage}, {status.number} of {status.of}: {_time(status.seconds)}{steps}")
    if status.reason:
        lines.append(f"reason: {status.reason}")
    for name, one in plan.sources.items():
        lines.append(f"source {name}: {one['version']}")
    return lines


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def fetch(*, root: Path, output: Path, source: str = CONTAINER, table: Sequence[Stage] = STAGES) -> None:
    """Copy what was built to the directory ``output``, with a record of its sources and digests (built.json).

    Refuses a build that runs, failed, ended early or only configured, with the reason. ``output`` appears complete.
    ``source`` as for :func:`report`.
    """
    place = Place(root)
    status = look(place)
    plan = _finished(place, status, source)
    stages = [stage for stage in table if stage.name in plan.stages]
    for stage in stages:
        if missing := missing_results(place, stage):
            raise UserError(f"{place.out / stage.name}: found no {missing[0]}, expected it from the stage", CLEAN)
    with scratch_directory(output) as scratch:
        new = scratch / "new"
        new.mkdir()
        for stage in stages:
            shutil.copytree(place.out / stage.name, new / stage.name, symlinks=True)
        write_atomic(new / RECORD, json.dumps(_record(new, plan), indent=2, sort_keys=True) + "\n")
        replace_tree(new, output, scratch)
    print(f"{output}: {', '.join(stage.name for stage in stages)}")
    for stage in stages:
        if stage.known:
            print(_compared(output / stage.name / stage.results[0], stage.known))
    print(f"to use it: ./doitw packages PACKAGES_SOURCE={plan.road}")


def _compared(made: Path, known: str) -> str:
    """Whether a result is the one that the pinned source and the pinned compilers give."""
    if (found := sha256_file(made)) == known:
        return f"{made}: as expected of the pinned source and compilers (SHA-256 {found})"
    return f"{made}: SHA-256 {found}; the pinned source and compilers give {known}"


def _finished(place: Place, status: Status, source: str) -> Plan:
    if status.plan is None:
        raise UserError(f"{place.root}: {status.phase.value}", _first_build(source))
    if status.phase is Phase.RUNNING:
        raise UserError(
            f"{place.root}: the build still runs: stage {status.stage}, {status.number} of {status.of}", STATUS
        )
    if status.phase is Phase.CONFIGURED:
        raise UserError(f"{place.root}: the build was only configured (--configure)", _build(status.plan.road))
    if status.phase is not Phase.DONE:
        stage = f" in stage {status.stage}" if status.stage else ""
        raise UserError(
            f"{place.root}: the build {status.phase.value}{stage}: {status.reason}", _build(status.plan.road)
        )
    return status.plan


def _record(tree: Path, plan: Plan) -> dict[str, object]:
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    return {
        "pin": plan.pin,
        "road": plan.road,
        "sources": plan.sources,
        "stages": {name: plan.keys[name] for name in plan.stages},
        "files": {path.relative_to(tree).as_posix(): sha256_file(path) for path in files},
    }


def clean(*, root: Path, source: str = "") -> None:
    """Stop the build, and remove its container, its image and its directory.

    Without a record of a build, and if ``source`` (PACKAGES_SOURCE) is container, all images made here are removed.
    """
    place = Place(root)
    try:
        plan = read_plan(place)
    except UserError:
        plan = None  # its container stays, and says so when the next build wants its name
    if plan and plan.engine:
        _remove_container(plan.engine, plan.container)
    if end_marked(place.mark):
        print("stopped the build")
    if engine := plan.engine if plan else find_engine() if source == CONTAINER else None:
        for name in image.remove_images(engine, plan.image if plan else ""):
            print(f"removed the image {name}")
    if root.exists():
        remove_tree(root)
        if root.exists():
            raise UserError(f"{root}: cannot be removed completely")
        print(f"removed {root}")


def _remove_container(engine: Engine, name: str) -> None:
    try:
        engine("rm", "--force", name)
    except CommandFailed as error:
        if not is_absent(error):
            raise
