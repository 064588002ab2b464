# SPDX-License-Identifier: Apache-2.0
"""For the tests of the pipeline: copies of the built project to work in, and readers of doit's output."""

import atexit
import contextlib
import functools
import os
import re
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from sevsnp.store.digests import Index, _fingerprint, identity
from tests.conftest import Built


def copy_built(built: Built, target: Path) -> Built:
    """The built project in ``target``, with the same keys.

    Built files and tests are hard links: replace them, never write to them.
    """
    own = _own_copy(built.project)
    with _digests_kept(own, own, target):
        _copy(own, target, os.link)
    return Built(target, built.config_dir)


@functools.cache
def _own_copy(project: Path) -> Path:
    """A copy of the built project, to which only this process makes hard links.

    A new hard link changes the change time of a file. A digest index then no longer knows the file, and the next run of
    doit would hash it again in every copy, also in those of other test processes.
    """
    place = Path(tempfile.mkdtemp(prefix="own-", dir=project.parent))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    with _digests_kept(project, place):
        _copy(project, place, shutil.copy2)
    return place


def _copy(project: Path, target: Path, built_file: Callable[[str, str], object]) -> None:
    # A guest of another test may write its logs there, and the files of hostile-host tests do not belong to the
    # project.
    others = {str(project / "build" / name) for name in ("run", "control", "log")}
    for place, directories, files in os.walk(project):
        directories[:] = [name for name in directories if os.path.join(place, name) not in others]
        below = os.path.relpath(place, project)
        made = os.path.join(target, below)
        os.makedirs(made, exist_ok=True)
        for name in [*directories, *files]:
            source = os.path.join(place, name)
            if os.path.islink(source):
                os.symlink(os.readlink(source), os.path.join(made, name))
            elif name in files and below.split(os.sep)[0] in ("build", "tests"):
                built_file(source, os.path.join(made, name))
            elif name in files:
                shutil.copy2(source, os.path.join(made, name))
    for place, _, _ in os.walk(target, topdown=False):
        shutil.copystat(project / Path(place).relative_to(target), place)


@contextlib.contextmanager
def _digests_kept(project: Path, *targets: Path) -> Iterator[None]:
    """Tell the digest index that what it knows of ``project`` is true of the copies, too, once they are made."""
    index = Index(Path(os.environ["SEVSNP_CACHE"]) / "digests.db")
    directories, files = {}, {}
    for path in (project / "build").rglob("*"):
        name, status = path.relative_to(project), path.lstat()
        if stat.S_ISREG(status.st_mode) and (known := index._get(identity(status))):
            files[name] = known
        elif stat.S_ISDIR(status.st_mode) and len(name.parts) < 3 and (known := index._get(_fingerprint(path, ())[0])):
            directories[name] = known
    yield
    for target in targets:
        for name, digest in files.items():
            if (target / name).is_file():
                index.note(target / name, digest)
        for name, digest in directories.items():
            index.note_tree(target / name, digest)
    index.close()


def copy_with_keys(built: Built, directory: Path) -> Built:
    """The built project and its keys in ``directory``, with nothing to build anew because the keys have moved."""
    shutil.copytree(built.config_dir, directory / "config")
    copied = replace(copy_built(built, directory / "project"), config_dir=directory / "config")
    with contextlib.closing(sqlite3.connect(copied.project / ".doit.db")) as database:
        names = (str(built.config_dir), str(copied.config_dir))
        database.execute("UPDATE doit SET task_data = replace(task_data, ?, ?)", names)
        database.commit()
    return copied


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
