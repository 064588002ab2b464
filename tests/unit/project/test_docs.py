# SPDX-License-Identifier: Apache-2.0
"""The pages for readers: code blocks, commands and names in them are what they seem to be."""

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.store.artefact import Artefact, leaves
from tasks.verity import task__verity_config
from tests.unit.project.test_house_rules import PROJECT

PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")])
# What the examples in Python take as given.
GIVEN = {"report", "table", "path", "report_data"}

PROSE = re.compile(r"^    [A-Z][a-z]* [a-z]+ [a-z]+ ", re.MULTILINE)
# Without an active venv there is no such program. Rows of the benchmarks name what they divide by.
BARE = re.compile(r"(?<!÷ )`(?:doit|pytest|python3?) [a-z_-]")
PARAMETER = re.compile(r"other parameters \(([\w.]+)\)")


def blocks(text: str) -> Iterator[str]:
    """The code blocks: lines that are indented by four spaces, after an empty line."""
    for block in re.findall(r"(?<=\n\n)(?:    .*\n|\n(?=    ))+", text):
        yield "\n".join(line[4:] for line in block.splitlines())


def examples_in_python() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(page.read_text()):
            if re.search(r"^from \S+ import ", block, re.MULTILINE):
                yield page.name, block


def undefined(source: str) -> set[str]:
    """The names that ``source`` uses and neither defines nor imports, and imported names that are not there."""
    tree = ast.parse(source)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    known = {node.id for node in names if isinstance(node.ctx, ast.Store)} | GIVEN | set(vars(builtins))
    missing = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            known |= {alias.asname or alias.name for alias in node.names}
            missing |= {alias.name for alias in node.names if not hasattr(module, alias.name)}
    return missing | {node.id for node in names if node.id not in known}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from datetime import UTC\nUTC, report", set()),
        ("from datetime import UTC\ndatetime.now(UTC)", {"datetime"}),
        ("from datetime import nonsuch\nnonsuch", {"nonsuch"}),
        ("one = len(table)\none", set()),
    ],
)
def test_control_undefined_names_are_found(source: str, found: set[str]) -> None:
    assert undefined(source) == found


def test_the_examples_in_python_are_complete() -> None:
    examples = list(examples_in_python())
    assert len(examples) >= 2
    assert {f"{page}: {name}" for page, source in examples for name in undefined(source)} == set()


def found_in_pages(pattern: re.Pattern[str]) -> list[str]:
    return [f"{page.name}: {match[0]}" for page in PAGES for match in pattern.finditer(page.read_text())]


def test_no_prose_is_in_a_code_block() -> None:
    assert PROSE.search("\n    This shows the tasks that ran:\n")  # control
    assert not PROSE.search("    VM config ─► host bundle\n  It shows the tasks that ran\n")
    assert found_in_pages(PROSE) == []


def test_every_command_is_one_that_is_there_without_an_active_venv() -> None:
    assert BARE.search("`doit clean` removes") and BARE.search("run `pytest -q` and")  # control
    assert not BARE.search("`./doitw clean`, `.venv/bin/python -m x`; nothing ÷ `doit list`")
    assert found_in_pages(BARE) == []


def test_a_changed_parameter_is_named_as_the_program_names_it() -> None:
    made = next(item for item in task__verity_config()["uptodate"] if isinstance(item, Artefact))
    known = {name for name, _ in leaves(made.params)}
    named = set(PARAMETER.findall((PROJECT / "docs" / "troubleshooting.md").read_text()))
    assert named and named <= known and "launch.vcpus" not in known


def test_every_page_is_read() -> None:
    assert {"README.md", "CONTRIBUTING.md", "troubleshooting.md"} <= {page.name for page in map(Path, PAGES)}
