# SPDX-License-Identifier: Apache-2.0
"""Starts a build from source and returns at once: in a container, or as a session of this machine."""

import hashlib
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sevsnp.builds import image
from sevsnp.builds.detached import end_marked, start_detached
from sevsnp.builds.engines import LABEL, Engine, find_engine
from sevsnp.builds.pins import read_pins
from sevsnp.builds.place import CLEAN, STATUS, Place, Plan, check_path
from sevsnp.builds.recipe import RUNNER, Compilers, real_compilers, stage_key, write_recipe
from sevsnp.builds.sources import fetch_sources, needed, place_sources
from sevsnp.builds.stages import Stage
from sevsnp.builds.state import Phase, Status, look
from sevsnp.errors import UserError
from sevsnp.system import progress
from sevsnp.system.command_failed import CommandFailed

CONTAINER, LOCAL = "container", "local"
# Where a container sees the build's directory and the compilers' cache.
_INSIDE, _CACHE_INSIDE = "/build", "/cache"
# Seconds until the runner must have said something.
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Environment:
    """What a build runs in: an image of an engine, or this machine; ``identity`` is part of each stage's key."""

    identity: str
    engine: Engine | None = None
    image: str = ""

    @property
    def road(self) -> str:
        return CONTAINER if self.engine else LOCAL


@dataclass(frozen=True)
class Inputs:
    """The files and settings from which sources and image come."""

    pins: Path
    listing: Path
    lock: Path
    cache_dir: Path
    mirror: str
    snapshot: str


def find_environment(road: str, inputs: Inputs, stages: Sequence[Stage], compilers: Compilers) -> Environment:
    """The environment of a ``road``, with its image made if need be. Raises :class:`UserError` for what is missing."""
    if road == LOCAL:
        return Environment(image.check_machine(stages, compilers.programs, inputs.listing))
    engine = find_engine()
    name, _ = image.make_image(
        engine,
        listing=inputs.listing,
        lock=inputs.lock,
        cache_dir=inputs.cache_dir,
        mirror=inputs.mirror,
        snapshot=inputs.snapshot,
    )
    return Environment(name, engine, name)


def refuse_running(place: Place, *, alone: bool = False) -> None:
    """Raise :class:`UserError` if a build runs in ``place``. ``alone``: this process holds the lock."""
    status = look(place, alone=alone)
    if status.phase is Phase.RUNNING and status.plan:
        stage = f"stage {status.stage}, {status.number} of {status.of}" if status.stage else "it starts"
        raise UserError(f"{place.root}: a build runs here already ({status.plan.road}; {stage})", STATUS)


def start(
    place: Place,
    environment: Environment,
    inputs: Inputs,
    stages: Sequence[Stage],
    *,
    pin: str,
    commit_date: str,
    compilers: Compilers,
    configure_only: bool,
) -> Status:
    """Fetch the sources, write the recipe, start the stages that are not done, and return when the first one runs.

    Raises :class:`UserError`: a build runs already, no room, a source cannot be had, the start fails.
    """
    compilers.check()
    check_path(place.root, environment.road)
    with place.alone() as lock:
        refuse_running(place, alone=True)
        end_marked(place.mark)  # what a killed build has left
        wanted = needed(stages, read_pins(inputs.pins, pin), inputs.pins)
        fetched = fetch_sources(
            wanted,
            file=inputs.pins,
            cache_dir=inputs.cache_dir,
            mirror=inputs.mirror,
            snapshot=inputs.snapshot,
            commit_date=commit_date,
        )
        keys = {
            stage.name: stage_key(
                stage,
                {name: dict(fetched[name].digests) for name in stage.sources},
                configure_only=configure_only,
                environment=environment.identity,
            )
            for stage in stages
        }
        place.make()
        open_stages = [stage for stage in stages if not is_done(place, stage, keys[stage.name])]
        check_room(place, open_stages)
        place_sources(open_stages, fetched, place.sources)
        caches = inputs.cache_dir.absolute() / "compilers"
        caches.mkdir(parents=True, exist_ok=True)
        local = environment.road == LOCAL
        write_recipe(
            place,
            open_stages,
            keys,
            compilers,
            configure_only=configure_only,
            cache=str(caches) if local else _CACHE_INSIDE,
            real=real_compilers(local=local),
        )
        place.state.unlink(missing_ok=True)
        plan = Plan(
            environment.road,
            pin,
            tuple(stage.name for stage in stages),
            tuple(stage.name for stage in open_stages),
            keys,
            {name: one.record() for name, one in fetched.items()},
            configure_only,
            time.time(),
            container="" if local else container_name(place),
            image=environment.image,
            engine=environment.engine,
        )
        if local:
            plan.write(place.plan)
            root = place.root.absolute()
            argv: list[str | Path] = ["nice", place.recipe.absolute() / RUNNER, root]
            pid = start_detached(argv, env=place.mark, cwd=root, log=place.log("runner"), lock=lock)
            replace(plan, pid=pid).write(place.plan)
        else:
            _start_container(place, plan, environment, caches, network=compilers.network)
    return _first_word(place)


def _start_container(place: Place, plan: Plan, environment: Environment, caches: Path, *, network: bool) -> None:
    engine, root = environment.engine, place.root.absolute()
    assert engine
    free_name(engine, plan.container, place)
    plan.write(place.plan)
    mounts = [f"{root}:{_INSIDE}", f"{caches}:{_CACHE_INSIDE}"]
    # What the scripts only read, they cannot change.
    mounts += [f"{root / name}:{_INSIDE}/{name}:ro" for name in ("recipe", "sources")]
    engine.start(
        "--detach",
        "--name", plan.container,
        "--label", f"{LABEL}={root}",
        "--network", "host" if network else "none",
        *engine.as_this_user(),
        *(word for mount in mounts for word in ("--volume", mount)),
        environment.image, f"{_INSIDE}/recipe/{RUNNER}", _INSIDE,
    )  # fmt: skip


def container_name(place: Place) -> str:
    """The container's name: each checkout has its own."""
    return f"sevsnp-packages-{hashlib.sha256(str(place.root.absolute()).encode()).hexdigest()[:12]}"


def free_name(engine: Engine, name: str, place: Place) -> None:
    """Remove the container of an earlier build. Raises :class:`UserError` if another's container has the name."""
    form = f'{{{{index .Config.Labels "{LABEL}"}}}}'
    try:
        found = engine("inspect", "--type", "container", "--format", form, name)
    except CommandFailed:
        return
    if found != str(place.root.absolute()):
        remove = shlex.join(engine.command("rm", "--force", name))
        raise UserError(f"{name}: found a container of this name that this build did not make", f"remove it: {remove}")
    engine("rm", "--force", name)


def is_done(place: Place, stage: Stage, key: str) -> bool:
    """Whether an earlier build made the stage's result from exactly the same things, and it is still there."""
    try:
        same = (place.done / stage.name).read_text().strip() == key
    except OSError:
        return False
    return same and not missing_results(place, stage)


def missing_results(place: Place, stage: Stage) -> list[str]:
    """Those of the stage's results that are not there."""
    return [pattern for pattern in stage.results if not any((place.out / stage.name).glob(pattern))]


def check_room(place: Place, stages: Sequence[Stage]) -> None:
    """Refuse a disk that is too small for the largest of ``stages``: each removes its work at its end."""
    largest = max(stages, key=lambda stage: stage.room, default=None)
    free = shutil.disk_usage(place.root).free
    if largest and free < largest.room:
        raise UserError(
            f"{place.root}: found {free / (1 << 30):.1f} GB free, expected {largest.room >> 30} GB for "
            f"the stage {largest.name}",
            f"see: df -h {shlex.quote(str(place.root))}",
        )


def _first_word(place: Place) -> Status:
    """The state once the runner has written one. Raises :class:`UserError` if it ends before or writes nothing."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        status = look(place)
        if status.phase is Phase.STOPPED and not place.state.exists():
            said = place.log("runner").read_text(errors="replace").strip() if place.log("runner").exists() else ""
            raise UserError(f"the build did not start: {status.reason}{f': {said}' if said else ''}", CLEAN)
        if status.phase is not Phase.RUNNING or place.state.exists():
            return status
        if time.monotonic() > deadline:
            raise UserError(f"the build said nothing for {_START_SECONDS:.0f} s", CLEAN)
        progress.step("the build starts")
        time.sleep(0.1)


def default_jobs() -> int:
    """One compiler for each processor that this process may use."""
    return len(os.sched_getaffinity(0))
