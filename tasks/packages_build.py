# SPDX-License-Identifier: Apache-2.0
"""QEMU, firmware and kernels from source (PACKAGES_SOURCE=container or local): start, look, fetch, remove."""

from pathlib import Path
from typing import Any

from tasks.graph import Task, command
from tasks.packages import BUILT
from tasks.project import BUILD, settings

FROM_SOURCE = BUILD / "from-source"


def _inputs() -> dict[str, Any]:
    values = settings()
    return {
        "source": values.text("PACKAGES_SOURCE"),
        "pins": Path("tasks/sources.yaml"),
        "listing": Path("tasks/build-packages.yaml"),
        "lock": Path("tasks/build-packages.lock"),
        "cache_dir": str(values.cache_dir()),
        "mirror": values.text("MIRROR"),
        "snapshot": values.text("SNAPSHOT_MIRROR"),
    }


def task_packages_image() -> Task:
    """Make the image in which PACKAGES_SOURCE=container builds

    Installs the compilers that tasks/build-packages.lock pins, and gives them to docker or podman, whichever runs. No
    registry is asked.

    Next: ./doitw packages_build PACKAGES_SOURCE=container
    """
    return command("sevsnp.builds.steps:make_image", needs=["_dependencies"], **_inputs())


def task_packages_build() -> Task:
    """Start building QEMU, OVMF and kernels from source, and return at once

    Fetches the sources that PACKAGES_PIN names and checks their SHA-256, then starts the build: in a container without
    a network (PACKAGES_SOURCE=container), or on this machine (local). It goes on without a terminal. Stages that were
    done before from the same sources are not done again. --only builds some stages; --configure stops before compiling.

    Next: ./doitw packages_status
    """
    values = settings()
    task = command(
        "sevsnp.builds.steps:build",
        needs=["_dependencies"],
        **_inputs(),
        root=FROM_SOURCE,
        pin=values.text("PACKAGES_PIN"),
        commit_date=values.text("COMMIT_DATE"),
        jobs=values.number("BUILD_JOBS"),
        cache=values.text("COMPILER_CACHE"),
        cluster=values.text("COMPILER_CLUSTER"),
        hosts=values.text("DISTCC_HOSTS"),
    )
    only = {"name": "only", "long": "only", "default": "", "help": "stages to build, as ovmf,qemu"}
    configure = {
        "name": "configure",
        "long": "configure",
        "type": bool,
        "default": False,
        "help": "stop each stage once it is configured",
    }
    return {**task, "params": [only, configure]}


def task_packages_status() -> Task:
    """Say how far the build from source is: stage, progress, end of the log

    It looks at what really runs, so it also knows a build that was killed, and one that ended at a restart.

    Next: ./doitw packages_fetch once it is done.
    """
    return command("sevsnp.builds.steps:report", root=FROM_SOURCE, source=settings().text("PACKAGES_SOURCE"))


def task_packages_fetch() -> Task:
    """Copy what was built from source to build/snp-built

    Refuses while the build runs and after it failed, and says why. build/snp-built/built.json has the versions of the
    sources and the SHA-256 of every file.

    Next: ./doitw packages PACKAGES_SOURCE=container, or local, puts it into build/snp-release.
    """
    source = settings().text("PACKAGES_SOURCE")
    return command("sevsnp.builds.steps:fetch", root=FROM_SOURCE, output=BUILT, source=source)


def task_packages_clean() -> Task:
    """Stop the build from source; remove its container, images and directory

    What packages_fetch has copied, the fetched sources and the compilers' caches stay.

    Next: ./doitw packages_build
    """
    source = settings().text("PACKAGES_SOURCE")
    return command("sevsnp.builds.steps:clean", root=FROM_SOURCE, source=source)
