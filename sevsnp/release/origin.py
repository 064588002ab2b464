# SPDX-License-Identifier: Apache-2.0
"""Where a release comes from: the project's version and commit, and the Python distributions that built it."""

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system.command import find, run


def product(project: Path) -> dict[str, str]:
    """The project's ``name`` and ``version``, as pyproject.toml has them."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"name": about["name"], "version": about["version"]}


def source_state(project: Path) -> dict[str, Any]:
    """The git ``commit`` of the checkout (40 or 64 hex digits) and whether it was ``clean``; None where there is none.

    Files that git does not know count as unclean, ignored ones do not.
    """
    # A checkout that belongs to another user, as in a container, is the one whose tasks run here anyhow. Without
    # optional locks a look at the state does not rewrite the index, which somebody else may be using.
    git: list[str | Path] = ["git", "-c", "safe.directory=*", "--no-optional-locks", "-C", project]
    unknown = {"commit": None, "clean": None}
    if find("git") is None:
        return unknown
    try:
        top = run([*git, "rev-parse", "--show-toplevel"]).decode().removesuffix("\n")
        commit = run([*git, "rev-parse", "HEAD"]).decode().strip()
    except UserError:  # no repository, or one without a commit
        return unknown
    if Path(top).resolve() != project.resolve():
        return unknown  # some other repository that this directory happens to lie in
    return {"commit": commit, "clean": not run([*git, "status", "--porcelain"])}


def distributions() -> dict[str, str]:
    """Name to version of the Python distributions that this process can import; names normalised as on an index."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            # The first is the one that an import takes.
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found
