# SPDX-License-Identifier: Apache-2.0
"""Debian's patches: applied as patch(1) does without fuzz, or refused."""

import difflib
import shutil
import subprocess
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.firmware.patches import apply_series
from tests.support.waiting import NET

OLD = "".join(f"line {number}\n" for number in range(40))
NEW = OLD.replace("line 5\n", "five\nfive and a half\n").replace("line 30\n", "").replace("line 39\n", "last\n")


def diff(old: str, new: str, name: str = "d/f") -> str:
    made = difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{name}", f"b/{name}")
    return f"Description: words\n words\n---\n{''.join(made)}"


def patched(tmp_path: Path, patch: str, source: str = OLD) -> str:
    patches, tree = tmp_path / "patches", tmp_path / "tree"
    patches.mkdir(exist_ok=True)
    (tree / "d").mkdir(parents=True, exist_ok=True)
    (tree / "d/f").write_bytes(source.encode())
    (patches / "series").write_text("# a comment\n\none.patch\n")
    (patches / "one.patch").write_bytes(patch.encode())
    assert apply_series(patches, tree, lambda path: path.parts[0] == "d") == ("one.patch",)
    return (tree / "d/f").read_bytes().decode()


@pytest.mark.parametrize("before", ["", "new\n" * 7])
def test_a_patch_is_applied_at_a_shifted_place(tmp_path: Path, before: str) -> None:
    assert patched(tmp_path, diff(OLD, NEW), before + OLD) == before + NEW


def test_the_result_equals_that_of_patch(tmp_path: Path) -> None:
    """Also if the same lines occur several times: the nearest place is used."""
    old = "a\nb\nc\n" * 20
    new = old[:60] + "x\n" + old[60:]
    (tmp_path / "f").write_text("b\nc\n" + old)
    (tmp_path / "p").write_text(diff(old, new, "f"))
    found = patched(tmp_path, diff(old, new), "b\nc\n" + old)
    if shutil.which("patch") is None:
        pytest.skip("needs patch(1)")
    subprocess.run(["patch", "-s", "-p1", "-F0", "-i", "p"], cwd=tmp_path, check=True, timeout=NET)
    assert found == (tmp_path / "f").read_text()


def test_line_ends_are_kept(tmp_path: Path) -> None:
    old, new = OLD.replace("\n", "\r\n"), NEW.replace("\n", "\r\n")
    assert patched(tmp_path, diff(old, new), old) == new


def test_a_new_file(tmp_path: Path) -> None:
    patched(tmp_path, "--- /dev/null\n+++ b/d/new\n@@ -0,0 +1,2 @@\n+one\n+two\n")
    assert (tmp_path / "tree/d/new").read_text() == "one\ntwo\n"


def test_changes_of_unwanted_files_are_skipped(tmp_path: Path) -> None:
    assert patched(tmp_path, diff(OLD, NEW, "other/f")) == OLD


@pytest.mark.parametrize(
    ("patch", "source", "said"),
    [
        (diff(OLD, NEW), OLD.replace("line 6\n", "line six\n"), "d/f: hunk 1 does not apply"),
        (diff(OLD, NEW), OLD.replace("line 38\n", ""), "d/f: hunk 3 does not apply"),
        (diff(OLD, NEW, "d/g"), OLD, "d/g: no such file"),
        ("--- /dev/null\n+++ b/d/f\n@@ -0,0 +1 @@\n+one\n", OLD, "d/f: is there already"),
        ("--- a/d/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-line 0\n", OLD, "removes a file"),
        (diff(OLD, NEW)[:-40], OLD, "in the middle of a hunk"),
        ("--- a/d/f\n+++ b/d/f\n@@ -40 +40 @@\n-line 39\n+x\n\\ No newline\n", OLD, "without an end of line"),
        ("words\n", OLD, "found no file name, expected a patch"),
        (diff(OLD, NEW, "../f"), OLD, "expected a path as b/NAME"),
    ],
)
def test_any_other_patch_is_refused_by_name(tmp_path: Path, patch: str, source: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        patched(tmp_path, patch, source)
    assert said in str(refused.value) and "one.patch" in str(refused.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="series: No such file"):
        apply_series(tmp_path, tmp_path, lambda _: True)
    (tmp_path / "series").write_text("gone.patch\n")
    with pytest.raises(UserError, match=r"gone\.patch: No such file"):
        apply_series(tmp_path, tmp_path, lambda _: True)
