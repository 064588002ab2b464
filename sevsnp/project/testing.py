# SPDX-License-Identifier: Apache-2.0
"""Runs the project's own tests and linters, each time in the same environment."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.project.dependencies import OF_TESTS, install_dependencies
from sevsnp.system.command import run_attached
from sevsnp.system.nearest import nearest

ROOT = Path(__file__).resolve().parents[2]

# Where things are fetched from and kept is the machine's business and goes through. Anything else a user has set
# (IMAGE, CPUS, PYTEST_ADDOPTS…) would change what the tests test.
_KEPT = ("CI", "COLUMNS", "XDG_CACHE_HOME", "CACHE_DIR", "MIRROR", "SNAPSHOT_MIRROR")


_AS_IN = "as in: ./doitw test tests/unit/settings"
# What is under two minutes: nothing is built or booted, and what lint does is not done again.
FAST = ("--fast", "--deselect", "tests/unit/project/test_house_rules.py::test_mypy")
# Lines and branches of the library that the tests reach in their own process.
COVERAGE = ("--cov", "--cov-report", "term:skip-covered")
# Each by its name and its program's own arguments.
LINTERS: Mapping[str, Sequence[str]] = {
    "ruff check": ("-m", "ruff", "check"),
    "ruff format --check": ("-m", "ruff", "format", "--check"),
    "mypy": ("-m", "mypy"),
    "lint-imports": (str(Path(sys.executable).with_name("lint-imports")), "--no-cache"),
}


def run_tests(
    full: bool = False, fast: bool = False, coverage: bool = False, select: str = "", paths: Sequence[str] = ()
) -> None:
    """Run pytest: the files, directories or tests that ``paths`` names, else all; of them what ``select`` (-k) names.

    Without the slow sweeps unless ``full``; ``fast`` are the unit tests that take no time. ``coverage``: of the unit
    tests unless ``paths`` are given; less than the floor in pyproject.toml is an error. Raises UserError.
    """
    if full and fast:
        raise UserError("test: found --full and --fast, expected one of them")
    # pytest would say it after it has loaded all others.
    for path in paths:
        if not (ROOT / path.partition("::")[0]).exists():
            known = {file.name: file.relative_to(ROOT) for file in (ROOT / "tests").rglob("test_*.py")}
            found = nearest(Path(path.partition("::")[0]).name, known)
            hint = f"did you mean ./doitw test {known[found]}?" if found else _AS_IN
            raise UserError(f"{path}: no such file or directory", hint)
    if not fast and any(not one.present() for one in OF_TESTS):
        install_dependencies(also=OF_TESTS)
    # Two more than there are cores, since a test that waits keeps none busy. A guest does, and more than four guests at
    # once would let tests that measure time reach their limits.
    processes = min(len(os.sched_getaffinity(0)) + 2, 4)
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
    """Run every linter, and name those that found something. Raises UserError."""
    failed = []
    for name, words in LINTERS.items():
        print(f"  {name}", flush=True)
        try:
            _run(name, [sys.executable, *words])
        except UserError:
            failed.append(name)
    if failed:
        raise UserError(f"{', '.join(failed)} found something, expected nothing", "their reports are above")


def _run(name: str, argv: Sequence[str]) -> None:
    # pip's own configuration, for the tests that make a .venv.
    kept = {name: text for name, text in os.environ.items() if name in _KEPT or name.startswith("PIP_")}
    if (mirror := Path(kept.get("MIRROR", ""))).is_file():
        kept["MIRROR"] = str(mirror.absolute())  # some tests run elsewhere
    code = run_attached(argv, env=kept, cwd=ROOT)
    if code:
        raise UserError(f"{name}: exit code {code}", "its report is above")
