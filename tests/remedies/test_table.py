# SPDX-License-Identifier: Apache-2.0
"""Every hint in the source has a row: a test that does what it says, or the reason why there is nothing to do."""

import importlib
import re
from pathlib import Path

import pytest

from tests.support.hints import PROJECT, Hint, Unreadable, all_hints, hints_of, shell_hints
from tests.support.no_action import NO_ACTION, NO_MESSAGE
from tests.support.table import CASES, Told

# What a hint without a test may not have: a command, a setting.
RUNNABLE = re.compile(
    r"\bdoit [a-z_]|\./|\brun( as root)?:|\bapt|\bchmod\b|\brm |\bopenssl\b|\bgit |\b[A-Z][A-Z_]+=(?!y\b)"
)


def cases() -> dict[tuple[str, str], str]:
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.remedies.{path.stem}")
    return CASES


def test_every_hint_has_a_row() -> None:
    rows = cases().keys() | NO_ACTION.keys() | NO_MESSAGE.keys()
    new = sorted(hint for hint in all_hints() if (hint.module, hint.text) not in rows)
    assert not new, "\n".join(
        [
            "hints without a row; add a test with this decorator, which provokes it and does what it says:",
            *(f'    @remedies("{hint.module}", {hint.text!r})  # line {hint.line}' for hint in new),
        ]
    )


def test_every_row_is_a_hint() -> None:
    found = {(hint.module, hint.text) for hint in all_hints()}
    gone = {**cases(), **NO_ACTION, **NO_MESSAGE}
    assert sorted(f"{row}: {where}" for row, where in gone.items() if row not in found) == []


def test_no_hint_has_two_rows() -> None:
    groups = (cases().keys(), NO_ACTION.keys(), NO_MESSAGE.keys())
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_every_hint_with_a_command_has_a_test() -> None:
    assert RUNNABLE.search("run: chmod 700 x") and RUNNABLE.search("take less: MEMORY=2G")  # control
    assert [row for row in NO_ACTION if RUNNABLE.search(row[1])] == []
    assert all(reason.strip() for reason in {**NO_ACTION, **NO_MESSAGE}.values())


def test_most_hints_have_a_test() -> None:
    assert len(NO_ACTION) < len(cases()) / 2


def test_every_command_of_doit_in_a_hint_begins_with_doitw() -> None:
    """With no venv active there is no `doit`; ./doitw is in every checkout."""
    bare = re.compile(r"(?<![\w./`])(?<!commands of )doit [a-z_]")
    assert bare.search("run: doit list") and not bare.search("run: ./doitw list")  # control
    found = {(hint.module, hint.text) for hint in all_hints() if bare.search(hint.text)}
    assert sorted(found - NO_MESSAGE.keys()) == []


SAMPLE = '''
"""Not a hint: run: ./doitw nothing"""
from b import failed
WHY = "constant"
def f(x):
    raise UserError("m", "plain")
def g(x, hint):
    raise UserError("m", hint)
def h(by_hand):
    raise UserError("m", by_hand or f"run as {x!r} it")
g(1, f"by place {x}")
h("through " + "two")
g(2, hint=WHY if x else "other")
for path, tip in (("a", "looped"), ("b", "twice")):
    pass
def loop():
    for path, tip in (("a", "looped"), ("b", "twice")):
        raise UserError("m", tip)
def made():
    return "returned"
def caller():
    text = "local"
    failed("m", remedy=text)
    g(3, made())
class Refused(Exception):
    def __init__(self, message, hint=""):
        raise UserError(message, hint)
raise Refused("m", "of a class")
def default(hint: str = "by default"): ...
class Other(UserError):
    def __init__(self, message):
        super().__init__(message, "of its own")
print("see: ./doitw list")
'''
LIBRARY = """
class UserError(Exception):
    def __init__(self, message: str, hint: str = "") -> None: ...
def failed(message: str, *, remedy: str): ...
"""


def test_the_collector() -> None:
    sample = "from sevsnp.errors import UserError\n" + SAMPLE
    found = {hint.text for hint in hints_of({"a": sample, "b": LIBRARY, "sevsnp.errors": LIBRARY})}
    assert found == {
        "plain", "run as {} it", "by place {}", "through two", "constant", "other", "looped", "twice", "returned",
        "local", "of a class", "by default", "of its own", "see: ./doitw list",
    }  # fmt: skip


def test_the_collector_refuses_what_it_cannot_read() -> None:
    with pytest.raises(Unreadable, match="a:2"):
        hints_of({"a": "\nfailed('m', hint=x[1])"})


def test_the_collector_of_shell_scripts() -> None:
    script = 'die "no $name: run: $(id) ${install}"\nsay "$@"\necho "other"\n'
    assert shell_hints("doitw", script) == {Hint("doitw", "no {}: run: {} {}"), Hint("doitw", "{}")}


def test_the_collector_finds_all_user_errors_with_a_hint() -> None:
    """A second way finds them by their text: each second argument that is a string is among the hints."""
    hints = {hint.text for hint in all_hints()}
    plain = re.compile(r'UserError\(\s*f?"[^"]*",\s*"([^"\\{}]+)",?\s*\)')
    texts = {text for path in (PROJECT / "sevsnp").rglob("*.py") for text in plain.findall(path.read_text())}
    assert len(texts) > 30 and texts <= hints


def test_the_tool_notices_a_missing_hint_and_a_useless_command(tmp_path: Path) -> None:
    """The tool ``Told``: it notices a hint that is not shown, a command that fails, and one that does not help."""
    from sevsnp.errors import UserError

    flag = tmp_path / "flag"

    def action() -> None:
        if not flag.exists():
            raise UserError("no flag", f"run: touch {flag.name}")

    def told(row: str) -> Told:
        return Told([row], tmp_path, {"PATH": "/usr/bin:/bin"})

    with pytest.raises(AssertionError, match="none of"):
        told("run: mkdir {}").mends(action)
    with pytest.raises(AssertionError, match="touch"):
        Told(["run: touch {}"], tmp_path, {"PATH": "/nonsuch"}).mends(action)
    with pytest.raises(UserError, match="no flag"):
        told("run: touch {}").mended(action, lambda: None)
    with pytest.raises(AssertionError, match="it did not fail"):
        told("run: touch {}").mends(lambda: None)
    told("run: touch {}").mends(action)
