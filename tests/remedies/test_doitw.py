# SPDX-License-Identifier: Apache-2.0
"""Hints of ./doitw before doit runs: in a small project, with what it needs and stand-ins on its PATH."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.pipeline.checkout import Checkout
from tests.remedies.test_launch import as_nobody
from tests.support.doitw_tools import Tools, make_project, small_lock
from tests.support.luks_ground import make_venv
from tests.support.table import Told, remedies

NO_ENSUREPIP = 'case "$*" in *ensurepip*) exit 1 ;; --version) echo Python 3.11.2 ;; esac'
PYTHON = f'exec {sys.executable} "$@"'
# What apt-get is asked for, and what is there then.
INSTALLED = f"""case " $* " in
*" python3-venv "* | *" python3 "*) PATH={os.defpath}; printf '#!/bin/sh\\n%s\\n' '{PYTHON}' > {{folder}}/python3
chmod 755 {{folder}}/python3 ;;
esac"""


@pytest.fixture
def program(told: Told, tmp_path: Path) -> Path:
    """A small project that has no .venv yet; the user stands in it."""
    made = make_project(tmp_path / "a project")
    told.cwd = made.parent
    return made


@pytest.fixture
def tools(told: Told, tmp_path: Path) -> Tools:
    found = Tools(tmp_path / "tools")
    told.variables["PATH"] = str(found.folder)
    return found


@pytest.mark.full
@remedies(
    "doitw",
    "found {}, expected Python 3.11 or newer (apt-get install python3)",
    "{} is missing and only root can install it: run as root: {}",
    "that failed; run as root: {}",
    "{} has no ensurepip, and there is no apt-get: install its venv package",
)
def test_a_missing_python_and_its_missing_packages(told: Told, program: Path, tools: Tools) -> None:
    """The hints come one after the other, as on a bare machine; after the last remedy doitw works."""

    def run() -> object:
        return told.doitw("list")

    works = INSTALLED.format(folder=tools.folder)
    hint = told.hint(run)
    tools.add("apt-get", works.replace(PYTHON, NO_ENSUREPIP.replace("'", "")))
    tools.add("python3", NO_ENSUREPIP)
    assert "(apt-get install python3)" in hint
    (tools.folder / "apt-get").unlink()
    tools.add("id", "echo 0")
    told.hint(run)
    tools.add("apt-get", "exit 1")
    told.hint(run)
    tools.add("id", "echo 1000")
    hint = told.hint(run)
    tools.add("apt-get", works)
    told.obey(hint)
    done = told.doitw("list")
    assert done.returncode == 0 and "hello" in done.stdout, done.stdout


@pytest.mark.full
@remedies("doitw", "pip could not install {} (its words are above); run ./doitw again to try again")
def test_a_python_package_that_could_not_be_installed(told: Told, program: Path) -> None:
    lock = program.with_name("requirements.lock")
    lock.write_text(small_lock().replace("sha256:", "sha256:0", 1).replace("sha256:", "sha256:0"))
    told.hint(lambda: told.doitw("list"))
    lock.write_text(small_lock())  # as when what stood in the way has gone
    assert told.shell("./doitw list").returncode == 0


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files that another user may not write")
@remedies("doitw", "{}/{} cannot be written by {}; run as root: chown -R {}: '{}'")
def test_a_checkout_of_another_user(told: Told, program: Path, tools: Tools) -> None:
    # Where every user may look into the directories above.
    place = Path("/var/tmp") / f"sevsnp-{os.getpid()} a project"
    shutil.copytree(program.parent, place)
    try:
        (place / ".venv").mkdir()
        for path in (place, *place.iterdir()):
            path.chmod(0o755)
        os.chown(place, 65534, 65534)

        def run() -> object:
            argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", f"PATH={os.defpath}"]
            return subprocess.run(
                [*argv, place / "doitw", "list"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                check=False, timeout=60, cwd="/",
            )  # fmt: skip

        command = told.hint(run).partition("run as root: ")[2]
        assert subprocess.run(["/bin/sh", "-c", command], check=False, timeout=60).returncode == 0
        # It goes on: this user's Python, if there is one, makes the .venv.
        done = run()
        assert isinstance(done, subprocess.CompletedProcess) and "cannot be written" not in done.stdout
    finally:
        shutil.rmtree(place)


@remedies("doitw", "this sh has no pipe for LUKS_KEY; use LUKS_KEY_FILE=path")
def test_a_shell_without_pipes(told: Told, program: Path) -> None:
    """A file takes the place of the pipe, as in such a shell."""
    make_venv(program.parent)
    text = program.read_text()
    (program.parent / "here").write_text("\n")
    program.write_text(text.replace("exec 8<<PIPE\n\nPIPE\n", "exec 8<>here\n"))
    told.hint(lambda: told.shell("LUKS_KEY=secret ./doitw list"))
    (program.parent / "key").write_text("secret")
    assert told.shell("LUKS_KEY_FILE=key ./doitw list").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files that another user may not write")
@remedies("sevsnp.system.files", "run as root: {}{}", "see: ls -ld {}")
def test_files_that_a_run_as_root_left(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path("/var/tmp") / f"sevsnp-{os.getpid()} left"
    place.mkdir()
    try:
        os.chown(place, 65534, 65534)
        monkeypatch.chdir(place)

        def lock() -> None:
            try:
                held = Checkout(place / "lock")
                held.acquire(lambda _: None)
                held.release()
            except OSError as error:
                raise UserError(str(error)) from error

        lock()  # by root
        (place / "lock").chmod(0o600)
        command = told.hint(lambda: as_nobody(lock)).removeprefix("run as root: ")
        assert told.shell(command).returncode == 0
        as_nobody(lock)
        (place / "lock").unlink()
        place.chmod(0o500)
        shown = told.shell(told.hint(lambda: as_nobody(lock)).removeprefix("see: "))
        assert shown.stdout.startswith("dr-x------")
        place.chmod(0o700)
        as_nobody(lock)
    finally:
        shutil.rmtree(place)
