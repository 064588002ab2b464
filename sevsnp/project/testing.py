# SPDX-License-Identifier: Apache-2.0
"""Runs the project's own tests and linters, each time in the same environment."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.project.dependencies import UIDMAP, install_dependencies
from sevsnp.system.command import run_attached
from sevsnp.system.nearest import nearest

ROOT = Path(__file__).resolve().parents[2]

# Variables for download sources and caches depend on the machine and are passed on. Any other variable of the user
# (IMAGE, CPUS, PYTEST_ADDOPTS…) would change what the tests test.
_KEPT = ("CI", "COLUMNS", "XDG_CACHE_HOME", "CACHE_DIR", "MIRROR", "SNAPSHOT_MIRROR")


_AS_IN = "as in: ./doitw test tests/unit/settings"
# The tests that take less than two minutes: they build and boot nothing, and do not repeat lint's work.
FAST = ("--fast", "--deselect", "tests/unit/project/test_house_rules.py::test_mypy")
# Lines and branches of the library that the tests reach in their own process.
COVERAGE = ("--cov", "--cov-report", "term:skip-covered")
# Each linter by its name, with the arguments of Python.
LINTERS: Mapping[str, Sequence[str]] = {
    "ruff check": ("-m", "ruff", "check"),
    "ruff format --check": ("-m", "ruff", "format", "--check"),
    "mypy": ("-m", "mypy"),
    "lint-imports": (str(Path(sys.executable).with_name("lint-imports")), "--no-cache"),
}


def run_tests(
    full: bool = False, fast: bool = False, coverage: bool = False, select: str = "", paths: Sequence[str] = ()
) -> None:
    """Run pytest on the files, directories or tests in ``paths``, else on all; ``select`` (-k) restricts them by name.

    Without the slow sweeps unless ``full``; ``fast`` runs the unit tests that take no time. ``coverage`` measures the
    unit tests unless ``paths`` are given; a coverage below the floor in pyproject.toml is an error. Raises UserError.
    """
    if full and fast:
        raise UserError("test: found --full and --fast, expected one of them")
    # pytest would report a missing path only after it has loaded all others.
    for path in paths:
        if not (ROOT / path.partition("::")[0]).exists():
            known = {file.name: file.relative_to(ROOT) for file in (ROOT / "tests").rglob("test_*.py")}
            found = nearest(Path(path.partition("::")[0]).name, known)
            hint = f"did you mean ./doitw test {known[found]}?" if found else _AS_IN
            raise UserError(f"{path}: no such file or directory", hint)
    # If root runs the tests, one of them builds as an ordinary user.
    if not fast and not UIDMAP.present():
        install_dependencies([UIDMAP])
    # Two processes more than cores, because a waiting test keeps no core busy. A guest does: with more than four guests
    # at once, tests that measure time would reach their limits.
    processes = min(len(os.sched_getaffinity(0)) + 2, 4)
    files = {path.partition("::")[0] for path in paths}
    if files and all((ROOT / file).is_file() for file in files):
        processes = min(processes, len(files) if len(files) > 1 else 0)  # one process runs all tests of a file
    argv = [sys.executable, "-m", "pytest", "--numprocesses", str(processes)]
    argv += ["--dist", "loadscope", "--no-loadscope-reorder", "--durations", "60", "--durations-min", "5"]
    if not full:
        argv += ["-m", "not full"]
    if select:
        argv += ["-k", select]
    argv += [*(FAST if fast else ()), *(COVERAGE if coverage else ())]
    argv += paths or (["tests/unit"] if fast or coverage else [])
    _run("pytest", argv)


def lint() -> None:
    """Run every linter. Raises UserError naming those that found something."""
    failed = []
    for name, words in LINTERS.items():
        print(f"  {name}", flush=True)
        try:
            _run(name, [sys.executable, *words])
        except UserError:
            failed.append(name)
    if failed:
        raise UserError(f"{', '.join(failed)} found problems", "their reports are above")


def _run(name: str, argv: Sequence[str]) -> None:
    # pip's own configuration, for the tests that make a .venv.
    kept = {name: text for name, text in os.environ.items() if name in _KEPT or name.startswith("PIP_")}
    if (mirror := Path(kept.get("MIRROR", ""))).is_file():
        kept["MIRROR"] = str(mirror.absolute())  # some tests run in another directory
    code = run_attached(argv, env=kept, cwd=ROOT)
    if code:
        raise UserError(f"{name}: exit code {code}", "its report is above")
