# SPDX-License-Identifier: Apache-2.0
"""docs/commands.md: generated from the commands' parsers, and correct."""

import shlex

import pytest

from sevsnp.commands import feature_info, measure, verify_report, verify_report_emulated
from sevsnp.commands.arguments import USAGE
from sevsnp.commands.reference import Command, commands, render_reference
from tasks.tools import _NAMES
from tests.conftest import PROJECT

COMMANDS = {command.name: command for command in commands()}
every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def test_the_page_equals_the_generated_reference() -> None:
    page = (PROJECT / "docs" / "commands.md").read_text()
    assert page == render_reference(), "run: .venv/bin/python -m sevsnp.commands.reference >docs/commands.md"


def test_every_command_is_there() -> None:
    # Its options are get_report's, beside which it is named.
    assert {*COMMANDS, "get_report_emulated"} == set(_NAMES)
    assert "`get_report_emulated`" in COMMANDS["get_report"].more


@every_command
def test_every_option_has_a_help_text(command: Command) -> None:
    silent = [action.dest for action in command.parser._actions if len(action.help or "") < 5]
    assert silent == [] and len(command.parser.description or "") > 20


@every_command
def test_the_example_is_a_command_line(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.parser.parse_args(shlex.split(command.example))
    with pytest.raises(SystemExit):  # the control
        command.parser.parse_args([*shlex.split(command.example), "--no-such-option"])


def test_the_exit_codes_of_the_page_equal_those_of_the_code() -> None:
    verdicts = {verify_report.REFUSED, verify_report.UNDECIDED, USAGE}
    expected = {
        "get_report": {0, 1, 2},  # argparse's own 2: there it says nothing of evidence
        "verify_report": {verify_report.ACCEPTED, *verdicts},
        "verify_report_emulated": {verify_report_emulated.ACCEPTED_AS_EMULATED, *verdicts},
        "inspect_report": {0, *verdicts},
        "measure": {measure.DONE, USAGE},
        "idblock-generator": {measure.DONE, USAGE},
        "sev-feature-info": {measure.DONE, feature_info.NO_ANSWER, USAGE},
        "tcb-floors": {measure.DONE, *verdicts},
    }
    assert {name: set(command.exits()) for name, command in COMMANDS.items()} == expected
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as ended:
            command.parser.parse_args(["--no-such-option"])
        assert command.exits()[int(ended.value.code or 0)].startswith("wrong command line"), name
