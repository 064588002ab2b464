# SPDX-License-Identifier: Apache-2.0
"""Writes the recipe of a build: the scripts of its stages, their list and their variables, and compilers' wrappers."""

import hashlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.builds.place import Place
from sevsnp.builds.stages import Stage
from sevsnp.errors import UserError
from sevsnp.store.recipe import recipe_digest
from sevsnp.system.files import remove_tree, sha256_file, write_atomic
from sevsnp.system.template import find_template

_COMPILERS = ("gcc", "cc", "g++", "c++")
OFF = "off"
RUNNER = "run.sh"


@dataclass(frozen=True)
class Compilers:
    """How compilers are called: the settings BUILD_JOBS, COMPILER_CACHE, COMPILER_CLUSTER and DISTCC_HOSTS."""

    jobs: int
    cache: str = OFF
    cluster: str = OFF
    hosts: str = ""

    def check(self) -> None:
        """Raises :class:`UserError` for settings that do not go together."""
        if self.cache == "sccache" and self.cluster != OFF:
            raise UserError(
                f"COMPILER_CACHE=sccache: it cannot hand compilations to {self.cluster} (COMPILER_CLUSTER)",
                "use the other cache: COMPILER_CACHE=ccache",
            )
        if self.cluster == "distcc" and not self.hosts.strip():
            raise UserError(
                "COMPILER_CLUSTER=distcc: found no DISTCC_HOSTS, expected the hosts to compile on",
                "name them, as: DISTCC_HOSTS='build1/8 build2/8'",
            )

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that stand before the compiler."""
        return tuple(name for name in (self.cache, self.cluster) if name != OFF)

    @property
    def network(self) -> bool:
        """Whether compilations leave the machine."""
        return self.cluster != OFF

    def words(self) -> tuple[str, ...]:
        """The words before the compiler's own. A cache starts the cluster's client itself, for what it lacks."""
        return self.programs[:1]

    def variables(self, cache: str) -> dict[str, str]:
        """The variables of the cache, in the directory ``cache``, and of the cluster. ``$build`` stays as it is."""
        found: dict[str, str] = {}
        if self.cache == "ccache":
            found |= {"CCACHE_DIR": f"{cache}/ccache", "CCACHE_COMPILERCHECK": "content", "CCACHE_BASEDIR": "$build"}
            if self.cluster != OFF:
                found["CCACHE_PREFIX"] = self.cluster
        elif self.cache == "sccache":
            # Its server goes by itself, a minute after the last compilation.
            found |= {"SCCACHE_DIR": f"{cache}/sccache", "SCCACHE_IDLE_TIMEOUT": "60"}
        if self.cluster == "distcc":
            found |= {"DISTCC_HOSTS": self.hosts, "DISTCC_DIR": "$build/home/distcc"}
        return found


def stage_key(stage: Stage, digests: Mapping[str, Any], *, configure_only: bool, environment: str) -> str:
    """SHA-256 of all that decides a stage's result: script, variables, sources, and the ``environment`` it runs in."""
    document = {
        "stage": [stage.name, _script(stage.script), stage.prepare, stage.output],
        "templates": {name: _beside(find_template(path)) for name, path in stage.templates.items()},
        "prepared_by": recipe_digest(stage.prepare.partition(":")[0]) if stage.prepare else "",
        "variables": dict(stage.variables),
        "sources": dict(digests),
        "configure_only": configure_only,
        "environment": environment,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def write_recipe(
    place: Place,
    stages: Sequence[Stage],
    keys: Mapping[str, str],
    compilers: Compilers,
    *,
    configure_only: bool,
    cache: str,
    real: Mapping[str, str],
) -> None:
    """Write the recipe for ``stages`` into ``place``.

    ``cache`` is the directory of the compilers' caches as the scripts see it; ``real`` has the path of each compiler.
    """
    remove_tree(place.recipe)
    place.make()
    for name in {RUNNER, *(stage.script for stage in stages)}:
        write_atomic(place.recipe / Path(name).name, _script(name), 0o755)
    lines = []
    for stage in stages:
        words = " ".join(f"{name}={value}" for name, value in stage.variables.items())
        script = Path(stage.script).name
        lines.append("|".join([stage.name, script, str(stage.limit), keys[stage.name], stage.output, words]))
    write_atomic(place.recipe / "stages", "".join(f"{line}\n" for line in lines))
    variables = {
        "JOBS": str(compilers.jobs),
        "CONFIGURE_ONLY": "yes" if configure_only else "no",
        "HOME": "$build/home",
        **compilers.variables(cache),
    }
    text = "".join(f"export {name}={_quoted(value)}\n" for name, value in variables.items())
    if before := compilers.words():
        (place.recipe / "bin").mkdir()
        for name, path in real.items():
            command = shlex.join([*before, path])
            write_atomic(place.recipe / "bin" / name, f'#!/bin/sh\nexec {command} "$@"\n', 0o755)
        text += 'export PATH="$build/recipe/bin:$PATH"\n'
    write_atomic(place.recipe / "env.sh", text)
    (place.root / "home" / "distcc").mkdir(parents=True, exist_ok=True)


def real_compilers(*, local: bool) -> dict[str, str]:
    """The path of each compiler: that of this machine, or of the image."""
    if not local:
        return {name: f"/usr/bin/{name}" for name in _COMPILERS}
    return {name: path for name in _COMPILERS if (path := shutil.which(name))}


def _quoted(value: str) -> str:
    """``value`` for the shell; only $build is replaced there."""
    before, there, behind = value.partition("$build")
    return (
        f'{shlex.quote(before) if before else ""}"$build"{shlex.quote(behind) if behind else ""}'
        if there
        else shlex.quote(value)
    )


def _beside(template: Path) -> list[tuple[str, str]]:
    """A template and the files that it may name: everything in its directory, each with its digest."""
    files = sorted(path for path in template.parent.rglob("*") if path.is_file())
    return [(path.relative_to(template.parent).as_posix(), sha256_file(path)) for path in files]


def _script(name: str) -> str:
    path = Path(name) if Path(name).is_absolute() else find_template(f"packages/{name}")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected the script of a stage") from None
