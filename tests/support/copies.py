# SPDX-License-Identifier: Apache-2.0
"""What the tests of the pipeline share: copies of the built project to work in, and what a doit run said."""

import re
import shutil
from pathlib import Path

from tests.conftest import Built


def copy_built(built: Built, target: Path) -> Built:
    """The built project in ``target``, with the same keys. What was built is hard-linked: replace it only."""
    # A guest of another test may write its logs there, and what tests of a hostile host make is not the project's.
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
    """The tasks that a doit run executed, by the reporter's name for them."""
    return set(re.findall(r"^▸ (.+)$", output, re.MULTILINE))


def made(output: str) -> set[str]:
    """Those of them that did their work and took nothing from the cache."""
    return set(re.findall(r"^✓ (.+) \([0-9.]+ s\)$", output, re.MULTILINE))


def restored(output: str) -> set[str]:
    """Those of them whose outputs came from the artefact cache."""
    return set(re.findall(r"^✓ (.+) \([0-9.]+ s, from the cache\)$", output, re.MULTILINE))


def one_line(output: str) -> str:
    """What a failed doit run said was wrong; fails where it shows a traceback, nothing, or two errors."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if line.startswith(("✗ ", "ERROR: "))]
    assert len(lines) == 1, output
    return lines[0]


def leavings(directory: Path) -> list[Path]:
    """Scratch files and directories that a run left below ``directory``."""
    kept = (".doit.db", ".cache", ".gitignore", ".ci", ".github", ".gitlab-ci.yml")
    return [path for path in directory.rglob(".*") if path.name not in kept]
