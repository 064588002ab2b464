# SPDX-License-Identifier: Apache-2.0
"""Functions that are named by a string, "module:function": each of them exists."""

import importlib
import re
from collections import defaultdict

import pytest

from tests.unit.project.test_house_rules import project_files, relative

NAME = re.compile(r"\b((?:sevsnp|tasks|tests)(?:\.[a-z_]\w*)+):([A-Za-z_]\w*)(?![\w.])")
TEXT = {".py", ".toml", ".yaml", ".yml", ".md", ".j2", ".txt"}
# Made up: of modules that a test writes itself, in entries that nothing runs, and in an example.
MADE_UP = {
    "CONTRIBUTING.md": {"sevsnp.notes:make_notes"},
    "tests/pipeline/test_cli.py": {"sevsnp.sleeper:make", "sevsnp.sleeper:quick"},
    "tests/pipeline/test_concurrent.py": {"sevsnp.standin:guest", "sevsnp.standin:make"},
    "tests/pipeline/test_full_disk.py": {"sevsnp.standin:by_python", "sevsnp.standin:by_tool", "sevsnp.standin:tree"},
    "tests/pipeline/test_graph.py": {"sevsnp.commands.tools:more"},
    "tests/pipeline/test_registry.py": {"sevsnp.test:make"},
    "tests/remedies/test_words.py": {"sevsnp.keys.pairs:ensure_kyes", "sevsnp.nonsuch:fetch"},
    "tests/unit/store/test_artefact_trouble.py": {"sevsnp.maker:make"},
    "tests/unit/store/test_entries.py": {"sevsnp.a:b", "sevsnp.a.b:make_this"},
    "tests/unit/project/test_house_rules.py": {"sevsnp.emulation.launch:run"},
    "tests/unit/store/test_local_store.py": {"sevsnp.a:b"},
    "tests/unit/store/test_local_upkeep.py": {"sevsnp.a:b"},
    "tests/unit/store/test_sealed.py": {"sevsnp.x:make"},
}


def is_there(name: str) -> bool:
    module, _, function = name.partition(":")
    try:
        return callable(getattr(importlib.import_module(module), function, None))
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("sevsnp.images.initramfs:make_packages_layer", True),
        ("sevsnp.images.initramfs:make_base_layer", False),
        ("sevsnp.images.initramfs:FILES_THAT_ARE_NOT", False),
        ("sevsnp.images.no_such_module:make", False),
        ("sevsnp.system.command:DEFAULT_TIMEOUT", False),
    ],
)
def test_control_missing_functions_are_detected(name: str, there: bool) -> None:
    assert NAME.findall(f'artefact("{name}", x=1)') == [tuple(name.split(":"))]
    assert is_there(name) == there


def test_every_function_that_is_named_is_there() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    here = relative(path=next(path for path in project_files() if path.name == "test_named_functions.py"))
    for path in project_files():
        if path.suffix in TEXT and relative(path) != here:
            found[relative(path)] |= {":".join(name) for name in NAME.findall(path.read_text())}
    named = set().union(*found.values())
    assert {
        "sevsnp.release.bundle:make_bundle",
        "sevsnp.commands.verify_report:main",
        "sevsnp.keys.pairs:make_keys",
    } <= named
    missing = {file: {name for name in names if not is_there(name)} for file, names in found.items()}
    assert {file: names for file, names in missing.items() if names} == MADE_UP
