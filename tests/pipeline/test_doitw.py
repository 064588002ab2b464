# SPDX-License-Identifier: Apache-2.0
"""doitw: it makes .venv once, uses only a complete one, and passes its arguments on to doit."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.doitw_tools import MOST, PROJECT, Tools, allow_dumps, doitw, greeting, made_venv, make_project
from tests.support.waiting import cpu_seconds, wait_until


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A doitw whose .venv was made by two of them at once."""
    program = make_project(tmp_path_factory.mktemp("doitw") / "a project")
    both = [
        subprocess.Popen(
            [program], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert [greeting(out) for out, _ in ends] == ["hello you", "hello you"]
    # One made it while the other waited, or came when it was there.
    assert sum("making .venv" in err for _, err in ends) == 1, ends
    return program


@pytest.mark.parametrize(
    ("words", "becomes"),
    [
        ("-h", "help doitw"),
        ("--help", "help doitw"),
        ("help", "help doitw"),
        ("help list", "help list"),
        ("hello --help", "help hello"),
        ("-n 2 hello -h NAME=x", "help hello NAME=x"),
        ("hello NAME=--help", "hello NAME=--help"),
    ],
)
def test_every_form_of_a_call_for_help_becomes_doit_help(program: Path, words: str, becomes: str) -> None:
    doit = program.parent / ".venv" / "bin" / "doit"
    kept = doit.read_text()
    doit.write_text('#!/bin/sh\necho "$@"\n')
    try:
        assert doitw(*words.split(), program=program).stdout == f"{becomes}\n"
    finally:
        doit.write_text(kept)


def test_doitw_prints_nothing_if_the_venv_is_complete(program: Path) -> None:
    assert not made_venv(program)


def test_arguments_and_exit_codes_are_passed_on(program: Path) -> None:
    assert greeting(doitw("hello", "NAME=a  b", program=program).stdout) == "hello a b"
    assert "Say hello." in doitw("list", program=program).stdout
    assert doitw("fail", program=program).returncode == 1
    assert doitw("no-such-task", program=program).returncode == 3


def test_doitw_runs_in_the_project_directory_from_anywhere(program: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(program)
    for way in (program, link):
        done = doitw(program=way, cwd=tmp_path, env={"CDPATH": str(tmp_path), "PYTHONPATH": str(tmp_path)})
        assert (greeting(done.stdout), done.stderr) == ("hello you", "")
    assert list(tmp_path.iterdir()) == [link]
    relative = Path(os.path.relpath(program, tmp_path))
    done = subprocess.run(["sh", relative], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert greeting(done.stdout) == "hello you"


def test_it_adds_little_time(program: Path, tmp_path: Path) -> None:
    """With a complete .venv: five small programs before doit, and little more processor time than doit's own."""
    tools, log = Tools(tmp_path / "tools"), tmp_path / "log"
    for name in [*(path.name for path in tools.folder.iterdir()), "python3", "sleep"]:
        tools.add(name, f'echo {name} >>{log}\nPATH={os.defpath} exec {name} "$@"')
    done = doitw("--version", program=program, env=tools.env)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(log.read_text().split()) == ["cat", "dirname", "readlink", "readlink", "sha256sum"]
    both = (program, program.parent / ".venv/bin/doit")
    pairs = [[cpu_seconds([path, "--version"], program.parent) for path in both] for _ in range(5)]
    ours, doit = map(min, zip(*pairs, strict=True))
    assert ours < 1.5 * doit, f"doitw {ours:.3f} s, doit {doit:.3f} s"


def test_the_project_is_importable_from_anywhere(program: Path, tmp_path: Path) -> None:
    script = "import dodo; print(dodo.__file__)"
    python = program.parent / ".venv/bin/python"
    done = subprocess.run([python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(program.parent / "dodo.py")


@pytest.mark.full
def test_a_venv_of_a_killed_run_is_made_anew(program: Path) -> None:
    folder = program.parent
    stamp = folder / ".venv/.doitw-stamp"
    with (folder / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    process = subprocess.Popen(
        [program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    # Half-made: there is an interpreter, and no more than a part of the packages.
    wait_until(lambda: process.poll() is not None or (not stamp.exists() and (folder / ".venv/bin/python").exists()))
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not stamp.exists()
    # The changed lock and the half-made venv are both mended by one run.
    assert made_venv(program)
    assert not made_venv(program)


@pytest.mark.full
def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    program = make_project(tmp_path / "project")
    lock = program.parent / "requirements.lock"
    good = lock.read_text()
    lock.write_text(re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", good))
    done = doitw(program=program)
    assert done.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("doitw: pip could not install requirements.lock")
    assert not (program.parent / ".venv/.doitw-stamp").exists()
    lock.write_text(good)
    assert made_venv(program)


@pytest.mark.full
def test_a_venv_whose_interpreter_is_gone_is_made_anew(program: Path) -> None:
    python = program.parent / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.0")
    assert made_venv(program)


@pytest.mark.full
def test_a_moved_project_gets_a_new_venv(tmp_path: Path) -> None:
    program = make_project(tmp_path / "old")
    assert made_venv(program)
    moved = program.parent.rename(tmp_path / "new") / "doitw"
    assert made_venv(moved)
    assert not made_venv(moved)


def pythons() -> list[str]:
    """Every Python from 3.11 on PATH that can make a venv, one a version, by its real path."""
    found = {}
    for name in (f"python3.{version}" for version in range(11, 16)):
        for folder in os.get_exec_path():
            script = "import ensurepip, sys; print(sys._base_executable)"
            try:
                argv = [str(Path(folder, name)), "-c", script]
                asked = subprocess.run(argv, capture_output=True, text=True, check=True)
            except (OSError, subprocess.CalledProcessError):
                continue
            found[name] = asked.stdout.strip()
    return list(found.values())


@pytest.mark.full
def test_a_clean_clone_works_with_every_python(tmp_path: Path) -> None:
    argv = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for number, python in enumerate(pythons()):
        clone = tmp_path / f"clone-{number}"
        for name in filter(None, listed.split("\0")):
            if (PROJECT / name).is_file():
                (clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT / name, clone / name)
        tools = tmp_path / f"tools-{number}"
        tools.mkdir()
        # Not a link: pyenv and venv look at the name they are called by.
        (tools / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n')
        (tools / "python3").chmod(0o755)
        done = doitw("list", program=clone / "doitw", env={"PATH": f"{tools}:{os.environ['PATH']}"})
        assert done.returncode == 0, done.stderr
        assert re.search(r"^ +test +Run the tests", done.stdout, re.MULTILINE)
        check = [str(clone / ".venv/bin/python"), "-m", "pip", "check"]
        checked = subprocess.run(check, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[tuple[Path, Tools]]:
    """A fresh project on a machine whose python3 has no ensurepip, as Debian's without python3-venv."""
    tools = Tools(tmp_path / "tools")
    tools.add("python3", 'case "$*" in *ensurepip*) exit 1 ;; --version) echo Python 3.11.2 ;; esac')
    program = make_project(tmp_path / "project")
    yield program, tools
    assert not (program.parent / ".venv").exists()


@pytest.mark.parametrize("old", [True, False], ids=["too old", "none"])
def test_an_old_or_missing_python_is_reported(bare: tuple[Path, Tools], old: bool) -> None:
    program, tools = bare
    if old:
        tools.add("python3", 'case "$1" in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac')
    else:
        (tools.folder / "python3").unlink()
    done = doitw(program=program, env=tools.env)
    assert done.returncode == 1
    assert done.stdout == ""
    found = "Python 3.9.2" if old else "no python3"
    assert done.stderr == f"doitw: found {found}, expected Python 3.11 or newer (apt-get install python3)\n"


INSTALL = "apt-get install --yes --no-install-recommends python3-venv"


def test_doitw_installs_python3_venv_for_root(bare: tuple[Path, Tools]) -> None:
    program, tools = bare
    tools.add("id", "echo 0")
    tools.add("apt-get", f"echo apt-get $* >> {tools.folder}/log; exit 1")
    done = doitw(program=program, env=tools.env)
    assert done.returncode == 1
    making, unasked, *rest = done.stderr.splitlines()
    assert making.endswith("half a minute; and the apt package python3-venv, for this machine")
    assert unasked == "doitw: going on without a question: there is no terminal"
    assert rest == [
        f"doitw: installing python3-venv, without which Python makes no virtual environment: {INSTALL}",
        "doitw: apt-get update failed; trying with the lists that are here",
        f"doitw: that failed; run as root: {INSTALL}",
    ]
    assert (tools.folder / "log").read_text().splitlines() == ["apt-get update -qq", f"{INSTALL} -qq"]


def test_doitw_installs_python3_venv_with_sudo_that_needs_no_password(bare: tuple[Path, Tools]) -> None:
    program, tools = bare
    tools.add("id", "echo 1000")
    tools.add("sudo", f'echo sudo $* >> {tools.folder}/log; [ "$1" = -n ]')
    tools.add("apt-get", "exit 1")
    done = doitw(program=program, env=tools.env)
    assert done.returncode == 1
    assert (tools.folder / "log").read_text().splitlines() == [
        "sudo -n true",
        "sudo apt-get update -qq",
        f"sudo env DEBIAN_FRONTEND=noninteractive {INSTALL} -qq",
    ]


@pytest.mark.parametrize("sudo", [None, "exit 1"], ids=["no sudo", "sudo wants a password"])
def test_doitw_prints_the_command_if_only_root_can_install(bare: tuple[Path, Tools], sudo: str | None) -> None:
    program, tools = bare
    tools.add("id", "echo 1000")
    tools.add("apt-get", "exit 1")
    if sudo:
        tools.add("sudo", sudo)
    done = doitw(program=program, env=tools.env)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"doitw: python3-venv is missing and only root can install it: run as root: {INSTALL}"


KEY = "canary-7c1 \t'\"$(id)`id`\\ \xe9\nand a second line\n"


@pytest.mark.parametrize("shell", [(), ("dash",), ("bash",), ("bash", "--posix")], ids=" ".join)
def test_a_disk_key_in_the_environment_goes_through_a_pipe(program: Path, shell: tuple[str, ...]) -> None:
    """All its bytes arrive; while doit runs, no process has the key in its environment or its arguments.

    A process that crashes leaves no core dump.
    """
    if shell and not shutil.which(shell[0]):
        pytest.skip(f"no {shell[0]}")
    done = subprocess.run(
        [*shell, program, "key"],
        cwd=program.parent,
        env={**os.environb, b"LUKS_KEY": KEY.encode("latin-1")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=True,
        preexec_fn=allow_dumps,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"key": KEY, "environ": 0, "cmdline": 0, "dumps": 0}
    assert b"canary-7c1" not in done.stderr


def test_control_a_canary_in_environment_and_arguments_is_found(program: Path) -> None:
    """Control for the test before."""
    found = json.loads(greeting(doitw("key", "X=canary-7c1", program=program, env={"ANOTHER": "canary-7c1"}).stdout))
    assert found["key"] is None and found["environ"] and found["cmdline"]
    assert found["dumps"] == MOST


def test_no_program_that_doitw_executes_has_the_key(bare: tuple[Path, Tools]) -> None:
    """Each program on the way to a refusal writes down its environment and file descriptors: none has the key."""
    program, tools = bare
    log = tools.folder / "log"
    look = f"{{ cat /proc/self/environ; ls /proc/$$/fd; }} >>{log} 2>&1"
    tools.add("ls", f'PATH={os.defpath} exec ls "$@"')
    for name in ("readlink", "dirname", "sha256sum", "mkdir"):
        tools.add(name, f'{look}\nexec {os.readlink(tools.folder / name)} "$@"')
    tools.add("python3", f'{look}\ncase "$*" in *ensurepip*) exit 1 ;; --version) echo Python 3.11.2 ;; esac')
    tools.add("id", "echo 1000")
    tools.add("apt-get", "exit 1")
    done = doitw(program=program, env={**tools.env, "LUKS_KEY": "canary-7c1", "OTHER": "control-7c1"})
    assert done.returncode == 1 and "python3-venv is missing" in done.stderr
    written = log.read_bytes()
    assert written.count(b"control-7c1") >= 4
    assert b"canary-7c1" not in written
    assert b"\n8\n" not in written and b"1\n" in written


@pytest.mark.parametrize(
    ("key", "words"),
    [("", "LUKS_KEY is empty, expected a key"), ("k" * 4097, "LUKS_KEY: found 4097 bytes, expected at most 4096")],
)
def test_an_empty_or_too_long_disk_key_is_refused(program: Path, key: str, words: str) -> None:
    done = doitw("key", program=program, env={"LUKS_KEY": key})
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"doitw: {words}\n")


def test_a_shell_that_keeps_here_documents_in_files_is_refused(program: Path, tmp_path: Path) -> None:
    """A file takes the place of the pipe, as in such a shell."""
    text = program.read_text()
    assert text.count("exec 8<<PIPE\n\nPIPE\n") == 1
    (tmp_path / "here").write_text("\n")
    old = program.with_name("doitw-old")
    old.write_text(text.replace("exec 8<<PIPE\n\nPIPE\n", f"exec 8<>'{tmp_path / 'here'}'\n"))
    old.chmod(0o755)
    done = doitw("key", program=old, env={"LUKS_KEY": "canary-7c1"})
    assert done.returncode == 1 and "this sh has no pipe for LUKS_KEY" in done.stderr
    assert (tmp_path / "here").read_text() == "\n"
