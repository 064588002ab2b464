# SPDX-License-Identifier: Apache-2.0
"""The question of doitw before it sets up, and which tasks need which of the two locked groups of packages."""

import contextlib
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.support.doitw_tools import Tools, doitw, greeting, made_venv, make_project
from tests.support.processes import AS_NOBODY, ends_with_us
from tests.support.waiting import NET


def on_a_terminal(program: Path, *words: str | Path, answer: str) -> tuple[int, str]:
    """doitw as somebody calls it who types ``answer``; its exit code, and all that is to be seen."""
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    process = subprocess.Popen(
        ends_with_us(*([] if "env" in words else [program]), *words),
        cwd=program.parent,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 4096):
            seen += piece
    os.close(ours)
    return process.wait(timeout=NET), seen.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("answer", ["n\n", "what?\n", "\x04"], ids=["no", "another word", "end of input"])
def test_a_question_is_asked_before_the_first_set_up(tmp_path: Path, answer: str) -> None:
    program = make_project(tmp_path / "project")
    code, seen = on_a_terminal(program, "list", answer=answer)
    assert code == 1
    assert "making .venv" in seen and "100 MB" in seen and "half a minute" in seen and "go on? [Y/n]" in seen
    assert "doitw: nothing was installed" in seen
    assert not (program.parent / ".venv").exists()


@pytest.mark.full
def test_yes_starts_the_set_up_and_a_setup_task_asks_nothing(tmp_path: Path) -> None:
    program = make_project(tmp_path / "asks")
    code, seen = on_a_terminal(program, "list", answer="\n")
    assert code == 0 and "go on? [Y/n]" in seen and "Say hello." in seen
    assert "go on?" not in on_a_terminal(program, "list", answer="")[1]  # control: once is enough
    code, seen = on_a_terminal(make_project(tmp_path / "does not"), "setup_hello", answer="")
    assert code == 0 and "making .venv" in seen and "go on?" not in seen and "hello set up" in seen


def test_doitw_asks_before_it_changes_the_machine_for_any_task(tmp_path: Path) -> None:
    tools = Tools(tmp_path / "tools")
    tools.add("python3", 'case "$*" in *ensurepip*) exit 1 ;; --version) echo Python 3.11.2 ;; esac')
    tools.add("id", "echo 0")
    tools.add("apt-get", f"echo apt-get $* >> {tools.folder}/log; exit 1")
    program = make_project(tmp_path / "project")
    words = ("env", f"PATH={tools.folder}", program, "setup_hello")
    code, seen = on_a_terminal(program, *words, answer="n\n")
    assert code == 1 and "the apt package python3-venv, for this machine" in seen and "go on? [Y/n]" in seen
    assert not (tools.folder / "log").exists()
    code, seen = on_a_terminal(program, *words, answer="y\n")
    assert code == 1 and "apt-get update" in (tools.folder / "log").read_text()


@pytest.mark.full
def test_packages_for_tests_are_installed_for_tests_alone(tmp_path: Path) -> None:
    program = make_project(tmp_path / "project")
    made_venv(program)
    for words in (("list",), ("help", "test"), ("info", "test"), ("hello", "NAME=test")):
        assert doitw(*words, program=program).stderr == ""
    assert not list((program.parent / ".venv").rglob("iniconfig"))
    adding = "doitw: adding what tests and linters need, from requirements-test.lock: "

    def added() -> bool:
        done = doitw("test", program=program)
        assert (done.returncode, greeting(done.stdout)) == (0, "test group: True"), done.stderr
        assert done.stderr == "" or done.stderr.splitlines()[-1].startswith(adding)
        return bool(done.stderr)

    assert added() and not added()
    with (program.parent / "requirements-test.lock").open("a") as lock:
        lock.write("# changed\n")
    assert not made_venv(program)  # it is not for this task
    assert added() and not added()
    with (program.parent / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert made_venv(program) and not list((program.parent / ".venv").rglob("iniconfig"))
    assert added()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files that another user may not write")
def test_a_checkout_of_another_user_is_an_error_of_one_line(tmp_path: Path) -> None:
    program = make_project(tmp_path / "project")
    (program.parent / ".venv").mkdir()
    os.chown(program.parent, 65534, 65534)
    done = subprocess.run([*AS_NOBODY, program, "list"], capture_output=True, text=True, check=False, timeout=60)
    remedy = f"chown -R nobody: '{program.parent}'"
    assert (done.returncode, done.stderr) == (
        1, f"doitw: {program.parent}/.venv cannot be written by nobody; run as root: {remedy}\n"
    )  # fmt: skip
    # The remedy works: it comes as far as the next thing that is missing here, a Python that this user may run.
    subprocess.run(["sh", "-c", remedy], check=True, timeout=60)
    tools = Tools(tmp_path / "tools")
    words: list[str | Path] = [*AS_NOBODY, "env", f"PATH={tools.folder}", program, "list"]
    again = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert again.stderr.startswith("doitw: found no python3")
