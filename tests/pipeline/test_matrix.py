# SPDX-License-Identifier: Apache-2.0
"""The matrix of edits: every input, parameter, recipe, tool and output of every task, and what doit would run again.

Nothing is built here but the copy to begin with; what follows from an edit downstream is in test_rebuilds.py.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sevsnp.settings.table import SETTINGS as KNOWN
from tests.conftest import GOALS, LUKS_GOALS, Built
from tests.support.copies import copy_with_keys, ran
from tests.support.matrix import CARRIED, RECIPES, ROWS, cells
from tests.support.matrix_settings import BUNDLES, PARAMETERS, SETTINGS


@pytest.fixture(scope="module")
def copy(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    directory = tmp_path_factory.mktemp("matrix")
    copied = copy_with_keys(built, directory)
    goals = (*GOALS, *LUKS_GOALS, "_e2e_bundle")
    copied.doit(*goals)
    assert ran(copied.doit(*goals).stdout) == set()
    yield copied
    shutil.rmtree(directory)


def ask(copy: Built, *words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.edits", *words],
        cwd=copy.project,
        env={**os.environ, "CONFIG_DIR": str(copy.config_dir), "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_table_has_every_task_and_all_its_inputs_and_outputs(built: Built) -> None:
    def portable(paths: list[str]) -> set[str]:
        return {path.replace(f"{built.config_dir}/", "~/") for path in paths}

    tasks = ask(built, "tasks")
    assert set(tasks) == set(ROWS)
    for name, task in tasks.items():
        row = ROWS[name]
        carried = {path for path in task["inputs"] if name in BUNDLES and path.startswith("sevsnp/")}
        assert set(CARRIED) <= carried if name in BUNDLES else not carried
        assert portable(task["inputs"]) - (carried - set(CARRIED)) == set(row.inputs), name
        assert set(task["outputs"]) == {*row.outputs, *row.trees}, name
        assert set(task["directories"]) == set(row.directories), name
        assert set(task["programs"]) == set(row.programs), name
        assert set(task["distributions"]) == set(row.distributions), name
        for parameter in task["parameters"]:
            setting = PARAMETERS.get(f"{name}.{parameter}", PARAMETERS[parameter])
            assert not setting or name in SETTINGS[setting][1], f"{name}: {parameter}"


def test_the_table_has_a_recipe_for_every_task_and_a_value_for_every_setting() -> None:
    # Of its own: one that changes everything would do for none of them.
    assert set().union(*(tasks for tasks in RECIPES.values() if len(tasks) < len(ROWS) / 2)) == set(ROWS)
    assert {setting.name for setting in KNOWN} == set(SETTINGS)


@pytest.mark.full
def test_every_edit_makes_outdated_what_the_table_says_and_nothing_else(copy: Built) -> None:
    found = ask(copy)
    outdated = {(kind, name): tasks for kind, name, tasks in found["cells"]}
    expected = cells()
    assert outdated.keys() == expected.keys()
    wrong = {
        cell: {
            "more": {name: tasks[name] for name in tasks.keys() - expected[cell]},
            "less": expected[cell] - set(tasks),
        }
        for cell, tasks in outdated.items()
        if set(tasks) != expected[cell]
    }
    assert wrong == {}
    assert sum(bool(tasks) for tasks in outdated.values()) > 100
    assert found["afterwards"] == {}, "edits that are taken back leave nothing to do"


def with_settings(copy: Built, directory: Path, names: Iterable[str]) -> dict[str, set[str]]:
    """The tasks that each setting makes outdated, with its value from the table."""
    (directory / "cache").mkdir()
    words = {name: f"{name}={SETTINGS[name][0].format(tmp=directory)}" for name in names}
    if "CONFIG_DIR" in words:
        shutil.copytree(copy.config_dir, directory / "keys")
    found = ask(copy, *words.values())
    return {name: set(found[word]) for name, word in words.items()}


def expected(names: Iterable[str]) -> dict[str, frozenset[str]]:
    return {name: SETTINGS[name][1] for name in names}


@pytest.mark.full
def test_each_setting_makes_outdated_the_tasks_of_the_table(copy: Built, tmp_path: Path) -> None:
    names = [name for name, (_, tasks) in SETTINGS.items() if tasks]
    assert len(names) > 20
    assert with_settings(copy, tmp_path, names) == expected(names)


@pytest.mark.full
def test_settings_that_change_nothing(copy: Built, tmp_path: Path) -> None:
    names = [name for name, (_, tasks) in SETTINGS.items() if not tasks]
    assert with_settings(copy, tmp_path, names) == expected(names)
