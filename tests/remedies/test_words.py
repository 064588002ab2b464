# SPDX-License-Identifier: Apache-2.0
"""Hints for misspelt words, and the hints in the help."""

import functools
import re
import subprocess
from pathlib import Path

import pytest

from sevsnp.project.testing import run_tests
from sevsnp.system.named import load_named
from tests.conftest import PROJECT
from tests.support.table import Told, remedies


@remedies("sevsnp.system.named", "correct the name in the task, in tasks/")
@remedies("sevsnp.system.nearest", "did you mean {}?")
def test_a_misspelt_name_of_a_function(told: Told) -> None:
    told.instead(lambda: load_named("sevsnp.nonsuch:fetch"), lambda: load_named("sevsnp.packages.fetch:fetch"))
    hint = told.hint(lambda: load_named("sevsnp.keys.pairs:ensure_kyes"))
    meant = hint.removeprefix("did you mean ").removesuffix("?")
    assert load_named(f"sevsnp.keys.pairs:{meant}").__name__ == "ensure_keys"


@remedies("sevsnp.settings.resolved", "all settings: ./doitw settings")
@remedies("sevsnp.pipeline.commands", "./doitw {}", "all tasks: ./doitw list")
def test_a_misspelt_word(told: Told, clone: Path) -> None:
    said = told.doitw("list", "CPU=1").stdout
    told.obey(told.hint(lambda: told.doitw("list", "CPU=1")))
    meant = re.search(r"did you mean (\S+)\?", said)
    assert meant and told.doitw("list", f"{meant[1]}1").returncode == 0
    said = told.doitw("cache_statsu").stdout
    told.obey(told.hint(lambda: told.doitw("cache_statsu")))
    command = re.search(r"did you mean (\./doitw .*?)\?", said)
    assert command and told.shell(command[1]).returncode == 0


@remedies("sevsnp.pipeline.settings_page", "./doitw settings {}")
@remedies("sevsnp.pipeline.completion", "./doitw completion {}")
def test_a_misspelt_word_of_a_command(told: Told, clone: Path) -> None:
    for words, meant in (
        (("settings", "CUPS"), "./doitw settings CPUS"),
        (("completion", "bsah"), "./doitw completion bash"),
    ):
        hint = told.hint(functools.partial(told.doitw, *words))
        assert hint.partition("?")[0] == meant
        assert told.shell(meant).returncode == 0


@remedies(
    "sevsnp.pipeline.settings_page",
    "One of them, and what a change of it rebuilds: ./doitw settings NAME",
)
def test_the_settings(told: Told, clone: Path) -> None:
    command = told.read(told.doitw("settings").stdout).rpartition(": ")[2]
    assert "A change of it rebuilds" in told.shell(command.replace("NAME", "CPUS")).stdout


@remedies(
    "sevsnp.pipeline.help",
    "./doitw TASK [NAME=value]...   ./doitw help TASK: what it does and all its settings, some are in [ ]",
    "The tasks are run by doit; the commands beside them are (./doitw help COMMAND):",
)
def test_the_help(told: Told, clone: Path, tmp_path: Path) -> None:
    listed = told.doitw("list").stdout
    run, _, explain = told.read(listed).partition(": ")[0].partition("   ")
    task = run.replace("TASK [NAME=value]...", f"cache_status SEVSNP_CACHE='{tmp_path / 'one'}'")
    assert told.shell(task).returncode == 0
    assert "Settings" in told.shell(explain.replace("TASK", "cache_status")).stdout
    commands = told.doitw("help").stdout
    command = re.search(r"\((\./doitw help COMMAND)\)", told.read(commands))
    names = re.findall(r"^  (\w+) ", commands.partition("help COMMAND):\n")[2], re.MULTILINE)
    assert command and "clean" in names
    assert told.shell(command[1].replace("COMMAND", "clean")).returncode == 0


@pytest.mark.full
@remedies("sevsnp.project.testing", "did you mean ./doitw test {}?", "as in: ./doitw test tests/unit/settings")
def test_a_misspelt_path_of_a_test(told: Told, clone: Path) -> None:
    # Its .venv has all that this one has.
    digest = subprocess.run(
        ["sh", "-c", "sha256sum <requirements-test.lock"], cwd=clone, capture_output=True, check=True, timeout=60
    )
    (clone / ".venv" / ".doitw-stamp-test").write_bytes(digest.stdout)
    meant = told.hint(lambda: run_tests(paths=["tests/unit/test_setings.py"]))
    assert meant == "did you mean ./doitw test tests/unit/settings/test_settings.py?"
    hint = told.hint(lambda: run_tests(paths=["tests/unit/nonsuch.py"]))
    assert (PROJECT / hint.rpartition(" ")[2]).exists()
    told.obey(hint)
