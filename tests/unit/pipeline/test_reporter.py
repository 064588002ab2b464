# SPDX-License-Identifier: Apache-2.0
"""The output of a doit run: on a terminal, in a log, with several tasks at once, and after an interrupt."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.waiting import NET

PROJECT = Path(__file__).resolve().parents[3]

DODO = """
import sys
import time
from pathlib import Path

from sevsnp.system import progress
from sevsnp.pipeline.reporter import Reporter

DOIT_CONFIG = {"backend": "sqlite3", "par_type": "thread", "reporter": Reporter, "verbosity": 2}


def _seen(name):
    # Until the test has seen what it waits for.
    while not Path(f"{name}.seen").exists():
        time.sleep(0.02)


def _image():
    with progress.amount("writing", 1000) as add:
        add(500)
        _seen("image")
        add(500)
    print("  left: by the image")
    progress.remark("from the cache")


def _tools():
    print("begun,", end=" ")
    progress.step("unpacking 120 packages")
    _seen("tools")
    print("and done")
    print("to stderr", file=sys.stderr)


def _asks():
    with progress.paused():
        print("password? ", end="", flush=True)
        answer = sys.stdin.readline().strip()
    print(f"got {answer}")


def _fails():
    time.sleep(0.5)
    from doit.exceptions import TaskFailed
    return TaskFailed("it broke\\n  mend it", report=True)


def _task(action, **more):
    return {"actions": [action], "uptodate": [False], "verbosity": 2, **more}


def task__image():
    return _task(_image, targets=["image"])


def task_tools():
    return _task(_tools, targets=["tools"])


def task_asks():
    return _task(_asks, targets=["asks"])


def task_fails():
    return _task(_fails, targets=["fails"])


def task_both():
    return {"actions": None, "task_dep": ["_image", "tools"]}


def _streams():
    print(f"streams: {type(sys.stdout).__name__} {type(sys.stderr).__name__}")


def task_streams():
    return _task(_streams, targets=["streams"])


def task_forever():
    return _task(lambda: time.sleep(600), targets=["forever"])


from tasks.project import end_cleanly
end_cleanly()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dodo.py").write_text(DODO)
    return tmp_path


def environment(term: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**kept, "PYTHONPATH": str(PROJECT), "TERM": term, "PYTHONUNBUFFERED": ""}


def in_log(project: Path, *words: str, term: str = "xterm") -> "subprocess.CompletedProcess[str]":
    for name in WAITING:
        (project / f"{name}.seen").touch()
    return subprocess.run(
        [sys.executable, "-m", "doit", *words],
        cwd=project,
        env=environment(term),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=NET,
    )


# Tasks that go on until the file of their name with .seen is there.
WAITING = ("image", "tools")


def plain(written: str) -> str:
    """Without what moves the cursor and sets colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)


def on_terminal(
    project: Path,
    words: Sequence[str],
    *,
    term: str = "xterm",
    more: Mapping[str, str] | None = None,
    react: Callable[[int, int, str], None] | None = None,
    seen: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run doit on a pseudo-terminal; ``react`` gets its end of it, the process and what was written so far.

    Each task in ``seen`` goes on when its pattern was on the terminal; of the others none waits.
    """
    waits = dict(seen or {})
    for name in WAITING:
        (project / f"{name}.seen").unlink(missing_ok=True) if name in waits else (project / f"{name}.seen").touch()
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    process = subprocess.Popen(
        [sys.executable, "-m", "doit", *words],
        cwd=project,
        env={**environment(term), **(more or {})},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    deadline = time.monotonic() + NET
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
                if not piece:
                    break
                written += piece
            text = written.decode(errors="replace")
            for name in [name for name, pattern in waits.items() if re.search(pattern, plain(text))]:
                (project / f"{name}.seen").touch()
                del waits[name]
            if react:
                react(ours, process.pid, text)
        return process.wait(NET), written.decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(NET)
        os.close(ours)


_PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


def screen_after(written: str) -> list[str]:
    """What a terminal of unlimited height shows in the end, without trailing blanks and empty lines."""
    lines, row, column = [""], 0, 0
    for numbers, letter, back, down, text in _PIECE.findall(written):
        if letter == "A":
            row = max(0, row - int(numbers or 1))
        elif letter == "K":
            assert numbers == "2"
            lines[row] = ""
        elif letter:
            assert letter == "m", f"unknown: CSI {numbers}{letter}"
        elif back:
            column = 0
        elif down:
            row += 1
            lines.extend([""] * (row + 1 - len(lines)))
        else:
            lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + len(text) :]
            column += len(text)
    return [line.rstrip() for line in lines if line.strip()]


def untimed(text: str) -> str:
    return re.sub(r"\(\d+\.\d s", "(T s", text)


def test_control_the_simulated_terminal_interprets_control_sequences() -> None:
    assert screen_after("a\r\nbusy\r\x1b[2Kdone\r\nx\r\ny\r\x1b[2K\x1b[1A\x1b[2Kz\r\n") == ["a", "done", "z"]
    # It sees what is left over.
    assert screen_after("done\r\nbusy") == ["done", "busy"]


IN_TURN = [
    "▸ image",
    "  left: by the image",
    "✓ image (T s, from the cache)",
    "▸ tools",
    "begun, and done",
    "to stderr",
    "✓ tools (T s)",
]


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_log_has_only_the_lines_of_the_tasks(project: Path, term: str) -> None:
    done = in_log(project, "both", term=term)
    assert done.returncode == 0, done.stdout
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert untimed(done.stdout).splitlines() == IN_TURN


def test_a_dumb_terminal_gets_the_output_of_a_log(project: Path) -> None:
    code, written = on_terminal(project, ["both"], term="dumb")
    assert code == 0 and "\x1b" not in written
    assert untimed(written).replace("\r\n", "\n").splitlines() == IN_TURN


def test_the_live_area_of_a_terminal_is_removed_at_the_end(project: Path) -> None:
    code, written = on_terminal(
        project, ["both"], seen={"image": "image: writing.* of 1.0 kB", "tools": "tools: unpacking 120 packages"}
    )
    assert code == 0, written
    # It was there …
    assert "image: writing" in written and "of 1.0 kB" in written
    assert "tools: unpacking 120 packages" in written
    # … and nothing of it is, but the lines.
    assert untimed("\n".join(screen_after(written))).splitlines() == [line.rstrip() for line in IN_TURN]
    assert "\x1b[?25l" not in written  # a cursor that was never hidden needs nobody to show it


def test_the_marks_have_colours_unless_no_color_is_set(project: Path) -> None:
    _, written = on_terminal(project, ["tools", "fails"])
    assert "\x1b[32m✓\x1b[0m tools" in written and "\x1b[31m✗\x1b[0m fails: it broke" in written
    assert "\x1b[32m✓\x1b[0m tools" in on_terminal(project, ["tools"], more={"NO_COLOR": ""})[1]  # empty: not set
    _, written = on_terminal(project, ["image", "tools", "fails"], more={"NO_COLOR": "1"})
    assert "✓ tools" in written and "✗ fails: it broke" in written
    assert re.findall(r"\x1b\[[0-9;]*m", written.replace("\x1b[0m", "")) == []


def test_lines_of_parallel_tasks_name_their_task(project: Path) -> None:
    below = r"image: writing[^\n]*\r?\n[^\n]*tools: unpacking 120 packages"
    code, written = on_terminal(project, ["-n", "2", "both"], seen={"image": below, "tools": below})
    assert code == 0, written
    assert re.search(below, plain(written)), "not one below the other"
    lines = untimed("\n".join(screen_after(written))).splitlines()
    named = ["  image: left: by the image", "  tools: begun, and done", "  tools: to stderr"]
    assert sorted(lines) == sorted(
        ["▸ image", "▸ tools", "✓ image (T s, from the cache)", "✓ tools (T s)", *(line.rstrip() for line in named)]
    )
    assert in_log(project, "-n", "2", "both").stdout.count("\n") == len(lines)


def test_the_streams_of_a_task_outlive_it(project: Path) -> None:
    # Python crashes if a stream is freed while another thread prints to it.
    for words in (["streams"], ["-n", "2", "streams", "tools"]):
        assert "streams: Lines Lines\n" in in_log(project, *words).stdout
    dodo = project / "dodo.py"
    dodo.write_text(dodo.read_text().replace('"reporter": Reporter, ', ""))
    assert "streams: Writer Writer\n" in in_log(project, "streams").stdout, "doit's own are freed with the task"


def test_a_failure_is_named_and_shown_completely(project: Path) -> None:
    for run in (in_log(project, "-n", "2", "fails", "tools"), in_log(project, "fails")):
        assert run.returncode == 1
        assert "✗ fails: it broke\n  mend it\n" in run.stdout
    code, written = on_terminal(project, ["-n", "2", "fails", "tools"])
    assert code == 1
    lines = screen_after(written)
    assert lines[lines.index("✗ fails: it broke") + 1] == "  mend it"
    assert not [line for line in lines if "unpacking" in line]


def answered(project: Path, words: list[str], when: Callable[[str], bool]) -> str:
    """What the terminal got, with the prompt answered half a second after ``when``; what runs beside ends after that.

    Half a second is four refreshes of the live area.
    """
    since: list[float] = []

    def react(terminal: int, pid: int, written: str) -> None:
        if not since and when(written):
            since.append(time.monotonic())
        elif since and time.monotonic() > since[0] + 0.5:
            with contextlib.suppress(OSError):
                os.write(terminal, b"secret\n")
            since[:] = [float("inf")]

    code, written = on_terminal(project, words, react=react, seen={"tools": "secret"})
    assert code == 0, written
    return written


@pytest.mark.parametrize("words", [["asks"], ["-n", "2", "asks", "tools"]], ids=["one", "threads"])
def test_a_prompt_is_not_drawn_over(project: Path, words: list[str]) -> None:
    written = answered(project, words, lambda written: "password? " in written)
    _, prompt, after = written.partition("password? ")
    assert prompt and "\x1b" not in after.partition("secret")[0], "drawn while the user typed"
    assert any(line.endswith("got secret") for line in screen_after(written))


def test_control_a_prompt_without_a_pause_is_drawn_over(project: Path) -> None:
    dodo = project / "dodo.py"
    dodo.write_text(dodo.read_text().replace("with progress.paused():", "if True:"))
    written = answered(project, ["asks"], lambda written: "\x1b" in written.partition("▸ asks")[2])
    assert "\x1b" in written.partition("▸ asks")[2].partition("secret")[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("words", [["forever"], ["-n", "2", "forever"]], ids=["one", "threads"])
def test_an_interrupted_run_leaves_a_sane_terminal(project: Path, number: signal.Signals, words: list[str]) -> None:
    sent: list[int] = []

    def react(terminal: int, pid: int, written: str) -> None:
        if not sent and "forever" in written.partition("▸ forever")[2]:
            os.kill(pid, number)
            sent.append(pid)

    code, written = on_terminal(project, words, react=react)
    assert sent and code == 128 + number
    assert screen_after(written) == ["▸ forever", f"interrupted by {number.name}"]
    assert "\x1b[?25l" not in written and "Traceback" not in written


KEPT = """

def task_kept():
    return {"actions": [lambda: open("kept", "w").close()], "targets": ["kept"], "file_dep": ["dodo.py"]}


def task_whole():
    return {"actions": None, "file_dep": ["kept"]}
"""


def test_a_run_that_finds_nothing_to_do_says_so(project: Path) -> None:
    dodo = project / "dodo.py"
    dodo.write_text(dodo.read_text() + KEPT)
    idle = ": nothing to do, all is up to date\n"
    assert idle not in in_log(project, "whole").stdout  # control: it was made
    assert in_log(project, "whole").stdout == f"whole{idle}"
    assert in_log(project, "-n", "2", "whole", "kept").stdout == f"whole, kept{idle}"
    said = in_log(project, "tools", "kept").stdout
    assert "✓ tools" in said and said.endswith(f"kept{idle}") and f"tools{idle}" not in said
    assert idle not in in_log(project, "fails").stdout
    dodo.write_text(dodo.read_text() + "# changed\n")
    assert idle not in in_log(project, "whole").stdout
