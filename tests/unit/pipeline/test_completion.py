# SPDX-License-Identifier: Apache-2.0
"""The scripts of `./doitw completion`: the words that they complete, in the shells that are installed here."""

import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.support.waiting import NET, wait_until

# What is typed, and all that its last word can become. None: the names of files are asked.
CASES: dict[str, str | None] = {
    "./doitw setup_v": "setup_verity",
    "doit -n 2 setup_v": "setup_verity",
    "./doitw CPUS=2 setup_v": "setup_verity",
    "./doitw setup_verity PLATFORM_INFO_F": "PLATFORM_INFO_FORBIDDEN=",
    "./doitw setup_verity PLATFORM=s": "PLATFORM=snp",
    "./doitw PLATFORM=": "PLATFORM=auto PLATFORM=emulated PLATFORM=snp",
    "./doitw bench:b": "bench:boot bench:build",
    "./doitw clean bench:bo": "bench:boot",
    "./doitw list --stat": "--status",
    "./doitw test --f": "--fast --full",
    "./doitw run test --fa": "--fast",
    "./doitw --alw": "--always-execute",
    "./doitw settings GUEST_FE": "GUEST_FEATURES",
    "./doitw completion ": "bash fish zsh",
    "./doitw help rese": "reset-dep",
    "./doitw _": "",
    "./doitw tab": "",
    "./doitw dumpdb setup": "",
    "./doitw test tests/uni": None,
    "./doitw IMAGE=tests/uni": None,
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all three: doitw.bash, doitw.zsh and doitw.fish."""
    directory = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh", "fish"):
        argv = [sys.executable, "-m", "doit", "run", "--db-file", str(directory / "db"), "completion", shell]
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=NET)
        (directory / f"doitw.{shell}").write_text(done.stdout)
    return directory


def shell(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"{name} is not installed here")


def run(*argv: str, **variables: str) -> str:
    done = subprocess.run(
        argv, cwd=PROJECT, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=NET
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_syntax(scripts: Path, name: str) -> None:
    run(shell(name), "-n", str(scripts / f"doitw.{name}"))


# As readline calls it. Without a PATH, what is not the shell's own would fail: TAB starts no program.
BASH = """
source "$1"
COMP_WORDBREAKS=$2 PATH=
complete -p doitw
while IFS= read -r line; do
    COMP_LINE=$line COMP_POINT=${#line}
    _doitw
    echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.parametrize("breaks", [" \t\n=:", " \t\n"])
def test_bash(scripts: Path, breaks: str) -> None:
    done = subprocess.run(
        [shell("bash"), "--norc", "-c", BASH, "bash", str(scripts / "doitw.bash"), breaks],
        cwd=PROJECT,
        input="".join(f"{line}\n" for line in CASES),
        capture_output=True,
        text=True,
        check=False,
        timeout=NET,
    )
    assert (done.returncode, done.stderr) == (0, "")
    known, *answers = done.stdout.splitlines()
    # What completes nothing is left to names of files.
    assert known == "complete -o bashdefault -o default -F _doitw doitw"
    for (line, expected), found in zip(CASES.items(), answers, strict=True):
        words = (expected or "").split()
        if "=" in breaks:
            # readline puts in only what stands behind these.
            typed = line.rpartition(" ")[2]
            begun = typed[: max(typed.rfind("="), typed.rfind(":")) + 1]
            words = [word.removeprefix(begun) for word in words]
        assert sorted(found.split()) == sorted(words), line


def test_fish(scripts: Path) -> None:
    fish = shell("fish")
    for line, expected in CASES.items():
        found = run(fish, "--no-config", "-c", f"source '{scripts / 'doitw.fish'}'; complete -C '{line}'")
        typed = line.rpartition(" ")[2]
        # fish offers what has the word in its middle, too.
        words = {word for word in (entry.split("\t")[0] for entry in found.splitlines()) if word.startswith(typed)}
        assert words == ({f"{typed}t/"} if expected is None else set(expected.split())), line


def completed(zsh: str, setup: str, lines: list[str]) -> list[str]:
    """What each of ``lines`` becomes with TAB behind it, in an interactive zsh."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(PROJECT)
        os.execve(zsh, [zsh, "-f", "-i"], {**os.environ, "TERM": "dumb", "COLUMNS": "200", "EDITOR": "", "VISUAL": ""})

    def until(mark: str) -> str:
        said = ""

        def there() -> bool:
            nonlocal said
            if select.select([terminal], [], [], 1)[0]:
                said += os.read(terminal, 1 << 16).decode(errors="replace")
            return mark in said

        wait_until(there, what=lambda: said)
        return said

    try:
        # The marks stand in what is printed, and not in what is typed.
        os.write(terminal, f"{setup}; print -r -- REA''DY\n".encode())
        until("READY")
        found = []
        for line in lines:
            # TAB; and with Ctrl-A before all of it, the completed line is printed instead of run.
            os.write(terminal, f"{line}\t E''ND\x01print -r -- BEG''IN \n".encode())
            found.append(until(" END").partition("BEGIN ")[2].partition(" END")[0])
        return found
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def test_zsh(scripts: Path) -> None:
    zsh = shell("zsh")
    whole = {line: words for line, words in CASES.items() if words and " " not in words}
    setup = f"autoload -Uz compinit; compinit -u -D; source '{scripts / 'doitw.zsh'}'"
    for (line, word), found in zip(whole.items(), completed(zsh, setup, list(whole)), strict=True):
        assert found.split() == [*line.split()[:-1], word], line
