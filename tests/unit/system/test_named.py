# SPDX-License-Identifier: Apache-2.0
"""Functions by name: a name that does not exist gives one line with the nearest name."""

import sys
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.system.named import load_named
from sevsnp.system.nearest import did_you_mean, nearest
from tasks.graph import call


def test_a_name_is_loaded() -> None:
    assert load_named("sevsnp.system.named:load_named") is load_named


# Put together, or the test of all names would look for them.
@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (
            ("sevsnp.commands.tools", "make_tool"),
            "sevsnp.commands.tools has no function 'make_tool'",
            "did you mean make_tools?",
        ),
        (("sevsnp.commands.tools", "START"), "sevsnp.commands.tools has no function 'START'", ""),
        (("sevsnp.nonsuch", "make"), "there is no module sevsnp.nonsuch", "in tasks/"),
        (("nonsuch.tools", "make"), "there is no module nonsuch", "in tasks/"),
    ],
)
def test_a_name_that_does_not_exist_is_an_error_with_the_nearest_name(
    name: tuple[str, str], message: str, hint: str
) -> None:
    with pytest.raises(UserError) as refused:
        load_named(":".join(name))
    assert refused.value.message == f"{':'.join(name)}: {message}" and hint in refused.value.hint


def test_a_missing_library_of_a_module_is_not_reported_as_a_misspelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking_one.py").write_text("import nonsuch_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nonsuch_library"):
        load_named(":".join(("lacking_one", "make")))
    sys.modules.pop("lacking_one", None)


def test_an_invalid_source_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("\nmade = )\n")
    (tmp_path / "importing_one.py").write_text("def make():\n    import broken_one\n\ndef other(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("broken_one", "importing_one"):
        failed = call(":".join((module, "make")))
        assert failed.get_msg().strip() == f"{tmp_path / 'broken_one.py'}:2: unmatched ')'"
    assert call(":".join(("importing_one", "other"))) is None  # control
    sys.modules.pop("importing_one", None)


def test_the_nearest_name_is_found() -> None:
    known = ("setup_verity", "setup_luks", "PLATFORM")
    assert [nearest(word, known) for word in ("Setup_verity", "setup_lucks", "platform", "zebra")] == [
        "setup_verity", "setup_luks", "PLATFORM", "",
    ]  # fmt: skip
    assert did_you_mean("stup_luks", known, "./doitw {}") == "did you mean ./doitw setup_luks?"
    assert did_you_mean("zebra", known) == ""
