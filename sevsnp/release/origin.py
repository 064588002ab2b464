# SPDX-License-Identifier: Apache-2.0
"""The origin of a release: the project's version and commit, and the Python distributions that built it."""

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system.command import find, run


def product(project: Path) -> dict[str, str]:
    """The project's ``name`` and ``version`` from pyproject.toml."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"name": about["name"], "version": about["version"]}


def source_state(project: Path) -> dict[str, Any]:
    """The git ``commit`` of the checkout (40 or 64 hex digits) and whether it was ``clean``; None without a repository.

    Untracked files count as unclean, ignored files do not.
    """
    # safe.directory: the checkout may belong to another user, as in a container; its tasks run here anyway.
    # --no-optional-locks: reading the state must not rewrite the index, which another process may be using.
    git: list[str | Path] = ["git", "-c", "safe.directory=*", "--no-optional-locks", "-C", project]
    unknown = {"commit": None, "clean": None}
    if find("git") is None:
        return unknown
    try:
        top = run([*git, "rev-parse", "--show-toplevel"]).decode().removesuffix("\n")
        commit = run([*git, "rev-parse", "HEAD"]).decode().strip()
    except UserError:  # no repository, or a repository without a commit
        return unknown
    if Path(top).resolve() != project.resolve():
        return unknown  # this directory is inside another repository
    return {"commit": commit, "clean": not run([*git, "status", "--porcelain"])}


def distributions() -> dict[str, str]:
    """Name → version of the Python distributions that this process can import; names are normalised as on an index."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            # An import uses the first one.
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found
