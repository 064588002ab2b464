# SPDX-License-Identifier: Apache-2.0
"""docs/original-workflow.md: every name in this project's column is a task, a setting, a file or a command."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.settings.table import SECRETS, SETTINGS
from tasks.listing import GROUPS
from tasks.project import RUN
from tasks.tools import task_build_tools
from tests.support.matrix import ROWS

PROJECT = Path(__file__).resolve().parents[3]
TABLES = PROJECT / "docs" / "original-workflow.md"
# What the tasks make.
BUILT = (str(RUN), *(path for row in ROWS.values() for path in (*row.outputs, *row.trees)))
# Commands of doit itself, which the project changes.
DOIT = {"clean"}
# The names of the original's targets that this table has for sure: its two workflows.
TARGETS = {"setup_verity", "attest_verity_vm", "setup_luks", "attest_luks_vm", "create_new_vm", "initramfs", "ssh"}


def tasks() -> set[str]:
    """Every task that users call; each has a function."""
    names = {name for names in GROUPS.values() for name in names}
    modules = [importlib.import_module(f"tasks.{path.stem}") for path in (PROJECT / "tasks").glob("*.py")]
    made = {name[5:] for module in modules for name in vars(module) if name.startswith("task_")}
    assert names <= made
    return names


def rows(text: str) -> Iterator[tuple[str, str]]:
    """The first two cells of each row."""
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = line.split(" | ")
            assert len(cells) == 3, line
            yield cells[0], cells[1]


def unknown(text: str) -> list[str]:
    """The names in the second column that are nothing here."""
    settings = {setting.name: setting for setting in SETTINGS}
    commands = {Path(path).name for path in task_build_tools()["targets"]}
    known = tasks() | DOIT | commands | set(settings) | set(SECRETS)

    def exists(name: str) -> bool:
        setting, _, value = name.partition("=")
        if value:
            return setting in settings and value in settings[setting].allowed
        if name.startswith("build/"):
            return any(f"{made}/".startswith(f"{name}/") for made in BUILT)
        return name in known or ("/" in name and (PROJECT / name).is_file())

    return [name for _, here in rows(text) for name in re.findall(r"`([^`]+)`", here) if not exists(name)]


def test_every_name_in_the_tables_is_there() -> None:
    text = TABLES.read_text()
    assert unknown(text) == []
    originals = {name for original, _ in rows(text) for name in re.findall(r"`([^`]+)`", original)}
    assert originals >= TARGETS and len(originals) > 70


@pytest.mark.parametrize(
    "name", ["setup_verify", "MEMROY", "PLATFORM=none", "initramfs/nothing.yaml", "NONE=1", "build/no"]
)
def test_control_a_name_that_does_not_exist_is_detected(name: str) -> None:
    assert unknown(f"| `x` | `IMAGE`, `{name}` | |\n") == [name]


def test_each_row_has_a_name_or_a_dash() -> None:
    assert [row for row in rows(TABLES.read_text()) if not re.search(r"`[^`]+`|^–$", row[1])] == []
