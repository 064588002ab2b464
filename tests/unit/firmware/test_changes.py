# SPDX-License-Identifier: Apache-2.0
"""Changes of a source by a table: each old text occurs exactly once, or the source is refused."""

from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.firmware.changes import apply_changes, read_changes

SOURCE = """\
begin
  a {
    <Libraries>
      {x}
  }
  b
middle
  twice
  twice
end
"""


def changed(tmp_path: Path, table: str, source: str = SOURCE) -> str:
    """The file ``f`` with ``source`` after the changes in ``table``."""
    tree = tmp_path / "tree"
    tree.mkdir(exist_ok=True)
    (tree / "f").write_bytes(source.encode())
    (tmp_path / "changes.yaml").write_text(table)
    apply_changes(read_changes(tmp_path / "changes.yaml"), tree)
    return (tree / "f").read_bytes().decode()


@pytest.mark.parametrize(
    ("table", "old", "new"),
    [
        ("- {file: f, lines: [b]}", "  b\n", ""),
        ("- {file: f, lines: ['a {']}", "  a {\n    <Libraries>\n      {x}\n  }\n", "\n"),
        ("- {file: f, old: middle, new: other}", "middle", "other"),
        ("- {file: f, old: middle}", "middle", ""),
        ("- {file: f, from: begin, until: middle}", SOURCE[: SOURCE.index("middle")], ""),
        ("- {file: f, from: begin, until: middle, new: x}", SOURCE[: SOURCE.index("middle")], "x"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_named_texts_are_changed(tmp_path: Path, table: str, old: str, new: str, end: str) -> None:
    """With both kinds of line ends, which are kept."""
    found = changed(tmp_path, table, SOURCE.replace("\n", end))
    assert found == SOURCE.replace(old, new).replace("\n", end)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("- {file: f, old: nowhere}", "f: found 0 times, expected once: 'nowhere'"),
        ("- {file: f, old: twice}", "f: found 2 times, expected once: 'twice'"),
        ("- {file: f, lines: [twice]}", "f: found 2 times, expected once"),
        ("- {file: f, lines: [middl]}", "f: found 0 times"),
        ("- {file: f, from: end, until: begin}", "f: found 0 times after 'end', expected once: 'begin'"),
        ("- {file: f, from: begin, until: twice}", "f: found 2 times after 'begin'"),
        ("- {file: g, old: x}", "g: No such file"),
    ],
)
def test_a_source_that_does_not_fit_the_table_is_refused(tmp_path: Path, table: str, said: str) -> None:
    """A text is missing, occurs twice, or is in another order. The file is not written."""
    with pytest.raises(UserError) as refused:
        changed(tmp_path, table)
    assert said in str(refused.value)
    assert (tmp_path / "tree/f").read_text() == SOURCE


def test_a_block_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no } that ends the block"):
        changed(tmp_path, "- {file: f, lines: ['a {']}", "a {\n  {\n}\n")


def test_our_own_files_are_added(tmp_path: Path) -> None:
    (tmp_path / "Ours").mkdir()
    (tmp_path / "Ours/a.c").write_text("code\n")
    changed(tmp_path, "- {add: Ours, as: Pkg/Ours}")
    assert (tmp_path / "tree/Pkg/Ours/a.c").read_text() == "code\n"
    with pytest.raises(UserError, match="Pkg/Ours: exists in the source"):
        changed(tmp_path, "- {add: Ours, as: Pkg/Ours}")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "expected a list of changes"),
        ("[]", "expected a list of changes"),
        ("- x", "entry 1: expected one of add, lines, old, from"),
        ("- {file: f}", "entry 1: expected one of"),
        ("- {file: f, old: a, neu: b}", "entry 1: unknown key 'neu'"),
        ("- {file: f, old: a}\n- {file: f, old: ' '}", "entry 2: old: found ' ', expected a text"),
        ("- {old: a}", "entry 1: file: found None"),
        ("- {file: f, from: a}", "entry 1: until: found None"),
        ("- {file: f, old: a, new: 1}", "entry 1: new: found 1"),
        ("- {file: f, lines: []}", "entry 1: lines: found []"),
        ("- {file: f, lines: [1]}", "entry 1: lines: found [1]"),
        ("- {file: ../f, old: a}", "expected a path below the source"),
        ("- {file: /f, old: a}", "expected a path below the source"),
        ("- {add: ../x, as: y}", "expected a path below the source"),
        ("- {add: x, as: y}", "no such directory"),
        ("- {file: f, old: a, old: b}", "old is given twice"),
    ],
)
def test_a_wrong_table_is_refused_with_its_entry(tmp_path: Path, table: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        changed(tmp_path, table)
    assert said in str(refused.value) and "changes.yaml" in str(refused.value)
