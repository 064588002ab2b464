# SPDX-License-Identifier: Apache-2.0
"""YAML is read strictly: no part of a file is ignored without an error."""

from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.system.yaml_loader import load


def written(directory: Path, text: str) -> Path:
    file = directory / "file.yaml"
    file.write_text(text)
    return file


def test_plain_types(tmp_path: Path) -> None:
    assert load(written(tmp_path, "a: [1, x]\nb: {c: true}\n")) == {"a": [1, "x"], "b": {"c": True}}
    assert load(written(tmp_path, f"a: 0x{'f' * 16}\nb: 2001-12-31\n"))["a"] == (1 << 64) - 1
    assert load(written(tmp_path, "")) is None


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a is given twice"),
        ("a:\n  - {b: 1, b: 2}\n", 2, "b is given twice"),
        ('a: 1\n"a": 2\n', 2, "a is given twice"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", 3, "merge key"),
        ("? [a, b]\n: 1\n", 1, "not plain text"),
        ("a: 1\n---\na: 2\n", 2, "document"),
        ("a: !!python/object:os.system {}\n", 1, "tag"),
        ("a: [1\n", 2, ""),
        ("a: 1\nb: " + "1" * 5000, 2, "a value that cannot be read: .*4300 digits"),
        ("a: [x, 0x" + "f" * 17 + "]", 1, "a value that cannot be read: an integer of more than 64 bits"),
        ("a:\n  - 2001-13-45\n", 2, "a value that cannot be read: month"),
        ("a: !!bool x\n", 1, "a value that cannot be read"),
    ],
)
def test_ambiguous_yaml_is_refused(tmp_path: Path, text: str, line: int, problem: str) -> None:
    with pytest.raises(UserError, match=rf"file\.yaml: (not YAML: )?line {line}: .*{problem}"):
        load(written(tmp_path, text))
