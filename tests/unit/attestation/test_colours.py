# SPDX-License-Identifier: Apache-2.0
"""Colours: only on a terminal and only without NO_COLOR; emulated results are amber; the verdict is the last line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.attestation.outcome import Appraisal
from sevsnp.attestation.terminal import print_appraisal
from sevsnp.vm_config.config import BANNER
from tests.support.evidence import REPORT_DATA, ROOT, evidence, root, write_evidence
from tests.support.hierarchy import Hierarchy
from tests.support.on_pty import on_pty
from tests.support.waiting import NET
from tests.unit.attestation.test_forged_reports import GENOA, outcome

GREEN, RED, AMBER, CYAN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[36m"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """verify_report_emulated, with evidence that it accepts."""
    config = write_evidence(tmp_path)
    return [
        *(sys.executable, "-m", "sevsnp.commands.verify_report_emulated", "--input", f"{tmp_path}/report"),
        *("--certificates", f"{tmp_path}/table", "--vm_definition", str(config), "--root", str(root())),
        *("--report-data", REPORT_DATA.hex()),
    ]


def refused(words: list[str]) -> list[str]:
    return [*words[:-1], "11" * 64]


def test_a_verdict_on_a_terminal(words: list[str]) -> None:
    code, written = on_pty(words, ROOT, TERM="xterm")
    assert code == 10
    assert written.rstrip().splitlines()[-1] == f"{AMBER}accepted as emulated: {BANNER} (policy: default)\x1b[0m"
    # Emulated evidence is accepted in amber, each check of it too: green is for hardware.
    assert f"{AMBER}✓ passed" in written and GREEN not in written and RED not in written
    code, written = on_pty(refused(words), ROOT, TERM="xterm")
    assert code == 2
    *lines, todo, last = written.rstrip().splitlines()
    assert last.startswith(f"{RED}REFUSED (report-data): found ") and todo.startswith("what to do: ")
    assert [line for line in lines if RED in line][-1].startswith(f"{RED}✗ failed      \x1b[0m report-data: found ")


@pytest.mark.parametrize("setting", [{"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}, {}], ids=str)
def test_a_terminal_without_colours(setting: dict[str, str], words: list[str]) -> None:
    for argv in (words, refused(words)):
        _, written = on_pty(argv, ROOT, **setting)
        assert "✓ passed" in written and "\x1b" not in written


def test_no_terminal(words: list[str]) -> None:
    for argv, last in ((words, "accepted as emulated"), (refused(words), "REFUSED")):
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=NET, check=False)
        assert "\x1b" not in done.stdout + done.stderr
        assert done.stdout.splitlines()[-1].startswith(last)


def test_a_locale_without_the_check_marks_gets_question_marks(words: list[str]) -> None:
    code, written = on_pty(words, ROOT, TERM="dumb", PYTHONIOENCODING="ascii")
    assert (code, written.rstrip().splitlines()[-1]) == (10, f"accepted as emulated: {BANNER.replace('–', '?')} "
                                                             "(policy: default)")  # fmt: skip
    assert "? passed       measurement" in written and "Traceback" not in written


def shown(appraisal: Appraisal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines on a terminal with colours."""
    monkeypatch.setattr("sevsnp.system.colour.has_colours", lambda stream: True)
    print_appraisal(appraisal, "ACCEPTED: hardware")
    return capsys.readouterr().out.splitlines()


def test_each_verdict_of_hardware(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = shown(outcome(), capsys, monkeypatch)
    assert accepted[-1] == f"{GREEN}ACCEPTED: hardware (policy: default)\x1b[0m"
    assert accepted[0].startswith(f"{GREEN}✓ passed") and not any(RED in line or AMBER in line for line in accepted)
    undecided = shown(outcome(GENOA.evidence([])), capsys, monkeypatch)
    assert undecided[-1].startswith(f"{CYAN}UNDECIDED (certificates): ") and GREEN not in undecided[-1]
    # What was not reached is one line, and the remedy stands right above the verdict.
    floor = shown(outcome(minimum_tcb=None), capsys, monkeypatch)
    assert floor[-1].startswith(f"{RED}REFUSED (tcb-floor): ") and floor[-2].endswith(outcome(minimum_tcb=None).remedy)
    early = shown(outcome(evidence()), capsys, monkeypatch)
    assert sum("not-reached" in line for line in early) == 1 and len(early) < 8


def test_control_characters_of_a_certificate_are_replaced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = b"\x1b[2J\rACCEPTED\n\x07"
    one = Hierarchy(vlek=True, extensions=(("1.3.6.1.4.1.3704.1.5", bytes((0x16, len(provider))) + provider),))
    found = outcome(one.evidence(), policy={"signer": ["VLEK"], "csp": ["mine"]})
    assert any("\x1b[2J" in check.found for check in found.checks)  # control: it was there to print
    lines = shown(found, capsys, monkeypatch)
    assert any("csp: found ?[2J?ACCEPTED??" in line for line in lines)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", COLOUR.sub("", "".join(lines)))
    assert lines[-1].startswith(f"{RED}REFUSED (csp)")


STAGES = """
from sevsnp.e2e.stages import Stages
stages = Stages()
with stages.stage("boot"): pass
try:
    with stages.stage("attest"): raise ValueError
except ValueError: pass
stages.table("e2e")
"""


def test_stages() -> None:
    argv = [sys.executable, "-c", STAGES]
    _, written = on_pty(argv, ROOT, TERM="xterm")
    assert f"{GREEN}✓\x1b[0m boot" in written and f"{RED}✗\x1b[0m attest" in written
    _, written = on_pty(argv, ROOT, TERM="xterm", NO_COLOR="1")
    assert "✓" in written and not re.search(r"\x1b\[[0-9;]*3[0-9]", written)  # bold may stay, colours may not
    _, written = on_pty(argv, ROOT, TERM="dumb")
    assert "✓ boot" in written and "\x1b" not in written
