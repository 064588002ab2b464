# SPDX-License-Identifier: Apache-2.0
"""The guardian: processes that a killed run started, and its files in TMPDIR, do not outlive the run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevsnp.system import command
from tests.support.waiting import NET, wait_until

PROJECT = Path(__file__).resolve().parents[3]
GUARDIAN = PROJECT / "sevsnp" / "system" / "guardian.py"
# Deaf to SIGTERM, as are its children: they inherit what is ignored.
STUBBORN = "trap '' TERM; echo $$ >> {pids}; sh -c 'echo $$ >> {pids}; sleep 300; :' & wait"
OBEDIENT = "trap 'touch {mark}; exit 1' TERM; echo $$ >> {pids}; sh -c 'echo $$ >> {pids}; exec sleep 300' & wait"
# Seconds that what does not listen has. The others have so many that only what they do themselves can end them.
GRACE = 0.5
RUN = """
import sys
from sevsnp.system import command
command.GRACE = float(sys.argv[3])
if sys.argv[2] == "unguarded":
    command._guard = lambda line: None
with command.temporary_directory("guarded.") as scratch:
    (scratch / "file").write_text("x")
    command.run(["true"])
    print(command._guardian[0].pid if command._guardian else 0, flush=True)
    command.run(["sh", "-c", sys.argv[1]], cwd=scratch)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ignores(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask.split()[1], 16) & 1 << (number - 1))


@dataclass(frozen=True)
class Run:
    """A run that waits for a command: its process, its guardian's, and the two of the command."""

    process: "subprocess.Popen[str]"
    guardian: int
    started: list[int]
    temporary: Path


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[str, str], Run]]:
    runs: list[Run] = []
    (tmp_path / "tmp").mkdir()

    def start(script: str, kind: str = "guarded", grace: float = NET) -> Run:
        pids = tmp_path / "pids"
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, script.format(pids=pids, mark=tmp_path / "mark"), kind, str(grace)],
            cwd=PROJECT,
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        watcher = int(process.stdout.readline())
        wait_until(lambda: pids.exists() and len(pids.read_text().splitlines()) == 2)
        run = Run(
            process, watcher, [int(pid) for pid in pids.read_text().split()], next((tmp_path / "tmp").glob("guarded.*"))
        )
        runs.append(run)
        return run

    yield start
    for run in runs:
        for pid in (run.process.pid, *run.started):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        run.process.communicate()


Begin = Callable[..., Run]


@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
def test_a_killed_run_leaves_nothing(begin: Begin, whole_group: bool) -> None:
    """Not even processes that ignore SIGTERM: the child, the grandchild and the temporary directory are gone."""
    run = begin(STUBBORN, grace=GRACE)
    assert all(map(alive, (run.guardian, *run.started))) and (run.temporary / "file").exists()
    (os.killpg if whole_group else os.kill)(run.process.pid, signal.SIGKILL)
    assert run.process.wait(NET) == -signal.SIGKILL
    wait_until(lambda: not any(map(alive, (run.guardian, *run.started))))
    assert list(run.temporary.parent.iterdir()) == []


def test_control_without_a_guardian_the_processes_live_on(begin: Begin) -> None:
    """Control: the guardian is what ends the processes in the tests above."""
    run = begin(STUBBORN, "unguarded", GRACE)
    run.process.kill()
    run.process.wait(NET)
    time.sleep(GRACE + 1)
    assert all(map(alive, run.started)) and (run.temporary / "file").exists()


def test_processes_that_handle_sigterm_may_clean_up_first(begin: Begin, tmp_path: Path) -> None:
    run = begin(OBEDIENT)
    run.process.kill()
    run.process.wait(NET)
    wait_until(lambda: not any(map(alive, (run.guardian, *run.started))))
    assert (tmp_path / "mark").exists() and not run.temporary.exists()


def test_signals_do_not_end_the_guardian(begin: Begin) -> None:
    """A terminal's Ctrl-C, and the end of a session, must not end it before the other processes."""
    run = begin(OBEDIENT)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    wait_until(lambda: all(ignores(run.guardian, number) for number in numbers))
    for number in numbers:
        os.kill(run.guardian, number)
    time.sleep(0.2)
    assert alive(run.guardian)
    run.process.kill()
    run.process.wait(NET)
    wait_until(lambda: not any(map(alive, (run.guardian, *run.started))))


def test_the_guardian_ends_with_a_run_that_ends_normally(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, "true", "guarded", str(2 * NET)],
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=NET,
    )
    assert done.returncode == 0
    wait_until(lambda: not alive(int(done.stdout)))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_guardian_is_replaced(tmp_path: Path) -> None:
    command.run(["true"])
    first = command._guardian[0]
    first.kill()
    first.wait(NET)
    command.run(["true"])
    assert command._guardian[0].pid != first.pid and alive(command._guardian[0].pid)


def guard(lines: str) -> "subprocess.Popen[str]":
    """A guardian whose run said ``lines`` and was killed."""
    process = subprocess.Popen([sys.executable, "-I", "-S", str(GUARDIAN)], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(lines)
    process.stdin.close()
    return process


def test_processes_and_files_that_were_taken_off_the_list_stay(tmp_path: Path) -> None:
    """The number of an ended process may belong to another process by then; likewise a name in TMPDIR."""
    directory = tmp_path / "made again"
    directory.mkdir()
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as other:
        assert guard(f"+{other.pid}\n+{directory}\n-{other.pid}\n-{directory}\n").wait(NET) == 0
        assert other.poll() is None and directory.exists()
        # On the list again, it is ours again; also the control.
        again = guard(f"+{other.pid}\n-{other.pid}\n+{other.pid}\n+{directory}\n")
        assert other.wait(NET) == -signal.SIGTERM
        assert again.wait(NET) == 0 and not directory.exists()


def test_processes_and_files_that_no_longer_exist_do_no_harm(tmp_path: Path) -> None:
    with subprocess.Popen(["true"], start_new_session=True) as ended:
        ended.wait(NET)
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as other:
        process = guard(f"\n+{ended.pid}\n+{tmp_path / 'none'}\n+{other.pid}\n")
        assert other.wait(NET) == -signal.SIGTERM and process.wait(NET) == 0


def test_commands_have_a_tmpdir_of_the_runs_own(tmp_path: Path) -> None:
    """Files that a tool leaves there when it is ended (as dpkg-deb does) are removed with the run."""
    script = "from sevsnp.system.command import run; run(['mktemp']); print(run(['mktemp', '-d']).decode(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=NET,
    )
    assert Path(done.stdout).is_relative_to(tmp_path) and list(tmp_path.iterdir()) == []
