# SPDX-License-Identifier: Apache-2.0
"""The private parts of libraries that this project uses, and the versions in which they exist.

A new version may change them without notice: raise its bound in pyproject.toml only after this test passes.
"""

import importlib
import re
import tomllib

import pytest

from tests.unit.project.test_house_rules import PROJECT

# By library, module and class: private ones, and public ones that are replaced.
PARTS = {
    ("doit", "doit.cmd_clean", "Clean"): {"_execute", "_expand", "clean_tasks"},
    ("doit", "doit.cmd_forget", "Forget"): {"_execute"},
    ("doit", "doit.cmd_help", "Help"): {"_execute", "print_usage"},
    ("doit", "doit.cmd_info", "Info"): {"_execute"},
    ("doit", "doit.cmd_list", "List"): {"_execute", "_list_all", "_list_filtered"},
    ("doit", "doit.cmd_run", "Run"): {"_execute"},
    ("doit", "doit.dependency", "Dependency"): {"get_status", "remove_success"},
    ("doit", "doit.dependency", "FileChangedChecker"): {"check_modified", "get_state"},
    ("doit", "doit.dependency", "SqliteDB"): {"_get_task_data", "_sqlite3", "dump"},
    ("oras", "oras.auth.token", "TokenAuth"): {"_get_auth_from_creds_store", "_load_auth"},
}


@pytest.mark.parametrize(("library", "module", "name"), PARTS)
def test_the_private_parts_of_libraries_exist(library: str, module: str, name: str) -> None:
    found = getattr(importlib.import_module(module), name)
    assert [part for part in PARTS[library, module, name] if not callable(getattr(found, part, None))] == []


@pytest.mark.parametrize("library", sorted({library for library, _, _ in PARTS}))
def test_the_library_has_an_upper_bound(library: str) -> None:
    document = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    asked = document["project"]["optional-dependencies"]["pipeline"]
    (requirement,) = (each for each in asked if re.match(rf"{library}\b", each))
    assert re.fullmatch(rf"{library}>=[0-9.]+,<[0-9.]+", requirement)


def test_every_used_private_part_of_doit_is_in_the_table() -> None:
    """By text: a method of a base class is called with super(), or is read from the class."""
    known = set().union(*(parts for (library, _, _), parts in PARTS.items() if library == "doit"))
    pattern = re.compile(r"(?:super\(\)|SqliteDB|Dependency|cmd_\w+\.\w+)\.(_[a-z]\w*)")
    named = {
        part
        for path in sorted((PROJECT / "sevsnp" / "pipeline").glob("*.py"))
        for part in pattern.findall(path.read_text())
    }
    assert {"_execute", "_sqlite3"} <= named <= known
