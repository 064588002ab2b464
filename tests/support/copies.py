# SPDX-License-Identifier: Apache-2.0
"""For the tests of the pipeline: copies of the built project to work in, and readers of doit's output."""

import re
import shutil
from pathlib import Path

from tests.conftest import Built


def copy_built(built: Built, target: Path) -> Built:
    """The built project in ``target``, with the same keys.

    Built files are hard links: replace them, never write to them.
    """
    # A guest of another test may write its logs there, and the files of hostile-host tests do not belong to the
    # project.
    others = {built.build / "run", built.build / "control", built.build / "log"}
    for path in built.project.rglob("*"):
        if not others.isdisjoint((path, *path.parents)):
            continue
        place = target / path.relative_to(built.project)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            place.symlink_to(path.readlink())
        elif path.is_dir():
            place.mkdir(exist_ok=True)
            shutil.copystat(path, place)
        elif path.relative_to(built.project).parts[0] == "build":
            place.hardlink_to(path)
        else:
            shutil.copy2(path, place)
    return Built(target, built.config_dir)


def ran(output: str) -> set[str]:
    """The tasks that a doit run executed, by the names that the reporter shows."""
    return set(re.findall(r"^▸ (.+)$", output, re.MULTILINE))


def made(output: str) -> set[str]:
    """The executed tasks that did their work and took nothing from the cache."""
    return set(re.findall(r"^✓ (.+) \([0-9.]+ s\)$", output, re.MULTILINE))


def restored(output: str) -> set[str]:
    """The executed tasks whose outputs came from the artefact cache."""
    return set(re.findall(r"^✓ (.+) \([0-9.]+ s, from the cache\)$", output, re.MULTILINE))


def one_line(output: str) -> str:
    """The error message of a failed doit run; fails if there is a traceback, no message, or more than one."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if line.startswith(("✗ ", "ERROR: "))]
    assert len(lines) == 1, output
    return lines[0]


def leavings(directory: Path) -> list[Path]:
    """The scratch files and directories that a run left below ``directory``."""
    kept = (".doit.db", ".cache", ".gitignore", ".ci", ".github", ".gitlab-ci.yml")
    return [path for path in directory.rglob(".*") if path.name not in kept]
