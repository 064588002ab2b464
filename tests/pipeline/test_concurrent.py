# SPDX-License-Identifier: Apache-2.0
"""Several runs of doit at once, in one checkout and on one artefact cache: one builds, the others wait for its output.

Most tests have stand-ins for the real tasks, which take a known time and write a line to a log when they run.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sevsnp.system.files import sha256_file
from tests.conftest import GOALS, Built, copy_project
from tests.support.copies import copy_built, leavings
from tests.support.processes import ends_with_us
from tests.support.waiting import NET, wait_until

CHECKOUT_WAIT = "waiting for another run that builds in this checkout"
KEY_WAIT = "waiting for another run that makes the same"
NAMES = ("first", "left", "right", "last")
LIBRARY = """
import os
import time
from pathlib import Path


def make(*, sources: list[Path], log: str, seconds: float, output: Path) -> None:
    with open(log, "a") as stream:
        stream.write(f"{output.name}\\n")
    output.write_bytes(b"half")
    time.sleep(float(os.environ.get("STANDIN_SECONDS", seconds)))
    while not os.path.exists(os.environ.get("STANDIN_GATE", "/")):
        time.sleep(0.02)
    text = "".join(source.read_text()[:100] for source in sources) + output.name
    output.write_text(text * (700_000 // len(text)))


def guest(*, log: str) -> None:
    with open(log, "a") as stream:
        stream.write("guest\\n")
    time.sleep(600)
"""
TASKS = """
import os
from pathlib import Path

from tasks.graph import artefact, command

LOG = os.environ["STANDIN_LOG"]
B = Path("build")


def _made(name, *sources):
    return artefact(
        "sevsnp.standin:make", inputs={"sources": list(sources)}, outputs={"output": B / name},
        how={"log": LOG, "seconds": 0.3},
    )


def task_first():
    '''First'''
    return _made("first", Path("README.md"))


def task_left():
    '''Left'''
    return _made("left", B / "first")


def task_right():
    '''Right'''
    return _made("right", B / "first")


def task_last():
    '''Last'''
    return _made("last", B / "left", B / "right")


def task_guest():
    '''A guest'''
    return {**command("sevsnp.standin:guest", log=LOG), "file_dep": ["build/first"]}
"""


@dataclass
class Bench:
    """Checkouts with stand-in tasks, and the runs in them."""

    base: Path
    runs: "list[subprocess.Popen[str]]" = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.base / "log"

    @property
    def gate(self) -> Path:
        """As long as this file is missing, the stand-ins of runs with it as STANDIN_GATE do not end."""
        return self.base / "gate"

    def made(self) -> Counter[str]:
        """How often each was made, in all checkouts."""
        return Counter(self.log.read_text().split() if self.log.exists() else [])

    def checkout(self, name: str) -> Path:
        project = self.base / name
        copy_project(project)
        (project / "sevsnp" / "standin.py").write_text(LIBRARY)
        (project / "tasks" / "standin.py").write_text(TASKS)
        dodo = project / "dodo.py"
        dodo.write_text(dodo.read_text().replace('"setup",', '"standin", "setup",'))
        return project

    def start(self, project: Path, *words: str, **variables: str) -> "subprocess.Popen[str]":
        run = subprocess.Popen(
            ends_with_us(sys.executable, "-m", "doit", *words),
            cwd=project,
            env={
                **os.environ,
                "SEVSNP_CACHE": str(self.base / "cache"),
                "STANDIN_LOG": str(self.log),
                "CONFIG_DIR": str(self.base / "config"),
                **variables,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.runs.append(run)
        return run


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for run in made.runs:
        run.kill()
        run.communicate()


def ended(run: "subprocess.Popen[str]", seconds: float = NET) -> str:
    """What a run said that ended well."""
    output, _ = run.communicate(timeout=seconds)
    assert run.returncode == 0 and "Traceback" not in output, output
    return output


def waits(run: "subprocess.Popen[str]", words: str) -> None:
    """Read on until a run says that it waits."""
    assert run.stdout is not None
    for line in run.stdout:
        if words in line:
            return
    raise AssertionError("it did not wait")


def built_here(output: str) -> list[str]:
    """The tasks that a run made itself, and did not take from the cache."""
    return re.findall(r"^✓ (.+) \([0-9.]+ s\)$", output, re.MULTILINE)


def results(project: Path) -> dict[str, str]:
    assert leavings(project / "build") == []
    return {name: sha256_file(project / "build" / name) for name in NAMES}


@pytest.mark.parametrize("words", [[], pytest.param(["-n", "2"], marks=pytest.mark.full)], ids=["one", "threads"])
def test_a_second_run_in_one_checkout_waits_and_builds_nothing(bench: Bench, words: list[str]) -> None:
    project = bench.checkout("project")
    one = bench.start(project, "run", *words, "last", STANDIN_GATE=str(bench.gate))
    wait_until(lambda: bench.made().total() > 0)
    other = bench.start(project, "run", *words, "last")
    waits(other, CHECKOUT_WAIT)
    bench.gate.touch()
    said, waited = ended(one), ended(other)
    assert CHECKOUT_WAIT not in said
    assert bench.made() == Counter(NAMES)
    assert sorted(built_here(said)) == sorted(NAMES) and built_here(waited) == []
    # The same as one alone makes.
    alone = bench.checkout("alone")
    ended(bench.start(alone, "last", SEVSNP_CACHE=str(bench.base / "another cache")))
    assert results(project) == results(alone)


@pytest.mark.full
def test_runs_started_together_in_one_checkout_build_each_artefact_once(bench: Bench) -> None:
    project = bench.checkout("project")
    goals = ["last", "right", "last", "left"]
    for run in [bench.start(project, goal) for goal in goals]:
        ended(run)
    assert bench.made() == Counter(NAMES)
    assert results(project).keys() == set(NAMES)


@pytest.mark.parametrize(
    "shared", [True, pytest.param(False, marks=pytest.mark.full)], ids=["one cache", "a cache each"]
)
def test_checkouts_with_one_cache_build_each_artefact_once(bench: Bench, shared: bool) -> None:
    """Control: if each checkout has a cache of its own, each builds every artefact."""
    projects = [bench.checkout(f"project{number}") for number in range(3)]
    caches = [str(bench.base / ("cache" if shared else f"cache{number}")) for number in range(3)]
    runs = []
    for project, cache in zip(projects, caches, strict=True):
        runs.append(bench.start(project, "run", "-n", "2", "last", SEVSNP_CACHE=cache, STANDIN_GATE=str(bench.gate)))
        wait_until(lambda: bench.made().total() > 0)
    if shared:
        for run in runs[1:]:
            waits(run, KEY_WAIT)
    bench.gate.touch()
    said = [ended(run) for run in runs]
    assert bench.made() == Counter(dict.fromkeys(NAMES, 1 if shared else 3))
    assert shared or not any(KEY_WAIT in text for text in said)
    assert [results(project) for project in projects] == [results(projects[0])] * 3


def test_a_running_guest_does_not_block_builds(bench: Bench) -> None:
    project = bench.checkout("project")
    guest = bench.start(project, "guest")
    wait_until(lambda: bench.made()["guest"] == 1)
    assert CHECKOUT_WAIT not in ended(bench.start(project, "last"))
    assert guest.poll() is None


def test_a_running_build_does_not_block_commands_that_only_read(bench: Bench) -> None:
    project = bench.checkout("project")
    builder = bench.start(project, "last", STANDIN_SECONDS="600")
    wait_until(lambda: bench.made()["first"] == 1)
    for words in (
        ["list"],
        ["list", "--status"],
        ["list", "--all", "--private", "--status"],
        ["info", "last"],
        ["help", "last"],
        ["cache_status"],
        ["clean", "--dry-run", "last"],
    ):
        output, _ = bench.start(project, *words).communicate(timeout=NET)
        assert CHECKOUT_WAIT not in output and "Traceback" not in output, f"doit {words}: {output}"
    assert builder.poll() is None and bench.made() == Counter(["first"])
    # The control: what builds does wait.
    waits(bench.start(project, "first"), CHECKOUT_WAIT)


@pytest.mark.parametrize("one_checkout", [True, pytest.param(False, marks=pytest.mark.full)], ids=["checkout", "cache"])
def test_a_waiting_run_goes_on_when_the_run_that_builds_is_killed(bench: Bench, one_checkout: bool) -> None:
    project = bench.checkout("project")
    holder = bench.start(project, "last", STANDIN_SECONDS="600")
    wait_until(lambda: bench.made()["first"] == 1)
    place = project if one_checkout else bench.checkout("other")
    waiter = bench.start(place, "last")
    waits(waiter, CHECKOUT_WAIT if one_checkout else KEY_WAIT)
    time.sleep(0.2)
    assert waiter.poll() is None and bench.made() == Counter(["first"])
    holder.kill()
    ended(waiter)
    assert bench.made() == Counter(["first", *NAMES])
    assert results(place).keys() == set(NAMES)


@pytest.mark.full
def test_pruning_does_not_disturb_a_run_that_restores_from_the_cache(bench: Bench) -> None:
    """The entries together exceed the limit, so each pruning removes some; the run that copies them still succeeds."""
    project = bench.checkout("project")
    ended(bench.start(project, "last"))
    expected = results(project)
    pruned = 0
    for _ in range(6):
        pruners = [bench.start(project, "cache_prune", CACHE_SIZE="1M") for _ in range(2)]
        shutil.rmtree(project / "build")
        restored = bench.start(project, "run", "-n", "2", "last", STANDIN_SECONDS="0")
        for pruner in pruners:
            output, _ = pruner.communicate(timeout=NET)
            assert pruner.returncode == 0 or "in use by another run" in output, output
            assert "Traceback" not in output
            pruned += pruner.returncode == 0
        assert "damaged" not in ended(restored)
        assert results(project) == expected
    assert pruned and bench.made().total() > len(NAMES), "nothing was ever pruned"
    ended(bench.start(project, "cache_verify"))
    ended(bench.start(project, "cache_prune", CACHE_SIZE="1M"))
    assert leavings(bench.base / "cache") == []


def lose(copy: Built) -> None:
    """Throw away what takes seconds, not minutes, to make again."""
    for name in ("verity", "layers", "kernel"):
        shutil.rmtree(copy.build / name)
    for path in copy.build.glob("initramfs*"):
        path.unlink()


def consistent(copy: Built) -> None:
    for platform in ("snp", "emulated"):
        launch = copy.config(platform).launch
        files = [(file.path, file.sha256) for file in (launch.firmware, launch.kernel, launch.initrd, launch.cmdline)]
        for path, digest in (*files, *((disk.path, disk.sha256) for disk in launch.disks)):
            assert sha256_file(copy.project / path) == digest, path


@pytest.mark.full
def test_two_runs_of_the_real_tasks_at_once_build_each_artefact_once(built: Built, bench: Bench) -> None:
    copy = copy_built(built, bench.base / "project")
    expected = {path: sha256_file(path) for path in sorted((copy.build / "verity").iterdir())}
    lose(copy)
    variables = {"CONFIG_DIR": str(copy.config_dir)}
    runs = [bench.start(copy.project, "run", "-n", "2", *GOALS, **variables) for _ in range(2)]
    said = [ended(run, 900) for run in runs]
    made = Counter(name for text in said for name in built_here(text))
    assert made["verity root"] == made["unpack_kernel"] == made["initramfs"] == 1
    assert set(made.values()) == {1}, made
    assert sum(CHECKOUT_WAIT in text for text in said) == 1
    assert {path: sha256_file(path) for path in sorted((copy.build / "verity").iterdir())} == expected
    consistent(copy)


@pytest.mark.full
def test_two_runs_with_different_settings_at_once_leave_consistent_files(built: Built, bench: Bench) -> None:
    copy = copy_built(built, bench.base / "project")
    variables = {"CONFIG_DIR": str(copy.config_dir)}
    for path in (copy.build / "verity").glob("vm-config*"):
        path.unlink()
    for _ in range(2):
        runs = [bench.start(copy.project, "setup_verity", CPUS=cpus, **variables) for cpus in ("1", "2")]
        said = [ended(run, 900) for run in runs]
        # The one that had to wait came last, and what is there is its own. (Nobody waits where one began too late.)
        waited = [cpus for cpus, text in zip((1, 2), said, strict=True) if CHECKOUT_WAIT in text]
        snp, emulated = (copy.config(platform).launch.vcpus for platform in ("snp", "emulated"))
        assert snp == emulated and snp in (waited or (1, 2)) and len(waited) < 2
        consistent(copy)
