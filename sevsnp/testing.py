"""Runs the project's own tests, each time in the same environment."""

import os
import sys
from pathlib import Path

from sevsnp.command import run_attached
from sevsnp.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

# Where things are fetched from and kept is the machine's business and goes through. Anything else a user has set
# (IMAGE, CPUS, PYTEST_ADDOPTS…) would change what the tests test.
_KEPT = ("CI", "COLUMNS", "XDG_CACHE_HOME", "CACHE_DIR", "MIRROR", "SNAPSHOT_MIRROR")


def run_tests(full: bool = False, select: str = "") -> None:
    """Run pytest: without the slow sweeps unless ``full``, and only the tests that ``select`` (pytest's -k) names."""
    # A guest keeps one core busy; more than four of them at once would make time-outs of tests that measure time.
    argv = [sys.executable, "-m", "pytest", "--numprocesses", "auto", "--maxprocesses", "4"]
    argv += ["--dist", "loadscope", "--no-loadscope-reorder", "--durations", "60", "--durations-min", "5"]
    if not full:
        argv += ["-m", "not full"]
    if select:
        argv += ["-k", select]
    # pip's own configuration, for the tests that make a .venv.
    kept = {name: text for name, text in os.environ.items() if name in _KEPT or name.startswith("PIP_")}
    if (mirror := Path(kept.get("MIRROR", ""))).is_file():
        kept["MIRROR"] = str(mirror.absolute())  # some tests run elsewhere
    code = run_attached(argv, env=kept, cwd=ROOT)
    if code:
        raise UserError(f"pytest: exit code {code}", "its report is above")
