# SPDX-License-Identifier: Apache-2.0
"""The table of exit codes in docs/commands.md, row by row: 2 for wrong evidence, 64 for a wrong command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sevsnp.attestation import verifier
from sevsnp.commands import idblock_generator, inspect_report, measure, verify_report, verify_report_emulated
from tests.conftest import PROJECT
from tests.support.evidence import REPORT_DATA, firmware, write_evidence
from tests.support.evidence import root as emulated_root
from tests.support.hierarchy import NOW, Hierarchy
from tests.unit.attestation.test_tcb_floor import written

GENOA = Hierarchy()
MINIMUM = GENOA.level


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Honest evidence of a hierarchy of the test's in place of AMD's, and what goes wrong with it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verifier, "_AMD", GENOA.root)
    made = GENOA.report()
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in (GENOA.certificate, GENOA.ask, GENOA.ark))
    for name, content in {
        "report": made, "chain": pem, "truncated": made[:-1], "empty": b"", "long": bytes((1 << 20) + 1),
        "strange": b"<html>", "json": b'{"report": 7}', "flipped": bytes((*made[:0x90], made[0x90] ^ 1, *made[0x91:])),
        "tail": made + b"x" * 20, "table": b"\1" * 100, "long-table": bytes((1 << 20) + 1),
        "broken-chain": pem.replace(b"MII", b"MIX"), "version": b"\x09" + made[1:], "hcl": b"HCLA" + made,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    written(tmp_path, MINIMUM)
    return tmp_path


# The report, the certificates, the exit code, and a word of the JSON document.
EVIDENCE = [
    ("report", "chain", 0, ""),
    ("tail", "chain", 0, "20 bytes after the report"),
    ("report", None, 3, "is not in the cache"),
    ("truncated", "chain", 2, "ends after 1183 bytes"),
    ("empty", "chain", 2, "an empty file"),
    ("long", "chain", 2, "more than 1048576 bytes"),
    ("strange", "chain", 2, "6 bytes in no known form"),
    ("json", "chain", 2, "expected bytes in hex or base64"),
    ("flipped", "chain", 2, "not signed by"),
    ("version", "chain", 2, "newer than 5"),
    ("hcl", "chain", 2, "expected at least"),
    ("report", "table", 2, "certificate table"),
    ("report", "long-table", 2, "certificate table"),
    ("report", "broken-chain", 2, "neither PEM nor DER"),
    ("nowhere", "chain", 64, "cannot read"),
    ("report", "nowhere", 64, "cannot read"),
    (".", "chain", 64, "outblob"),
]


def words(files: Path, report: str, certificates: str | None) -> list[str]:
    found = ["--input", str(files / report), "--at", f"{NOW:%FT%TZ}", "--offline"]
    return found + (["--certificates", str(files / certificates)] if certificates else [])


@pytest.mark.parametrize(("report", "certificates", "code", "word"), EVIDENCE, ids=lambda one: str(one))
@pytest.mark.parametrize("command", ["inspect_report", "verify_report"])
def test_evidence(
    command: str, report: str, certificates: str | None, code: int, word: str, files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    main: Callable[[list[str]], int] = inspect_report.main if command == "inspect_report" else verify_report.main
    more = [] if command == "inspect_report" else [
        "--vm_definition", str(files / "vm.toml"), "--report-data", REPORT_DATA.hex()]  # fmt: skip
    line = words(files, report, certificates) + more
    assert main([*line, "--json"]) == code
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert word in shown.out and "Traceback" not in shown.err
    assert isinstance(document["checks"], list) and bool(document["checks"]) is (code != 64)
    good = document.get("authentic" if command == "inspect_report" else "accepted", False)
    assert good is (code == 0) and ("error" in document) is (code == 64)
    assert all({"name", "ok", "outcome", "expected", "found", "reason"} == check.keys() for check in document["checks"])
    assert all(check["ok"] for check in document["checks"]) is (code in (0, 64))
    assert main(line) == code  # in words, too
    shown = capsys.readouterr()
    assert word in shown.out + shown.err


def test_a_wrong_command_line_gives_64(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*words(files, "report", "chain"), "--report-data", REPORT_DATA.hex(), "--json"]
    (files / "policy.toml").write_text("profile = 7\n")
    for more in (
        ["--vm_definition", str(files / "nowhere")], ["--vm_definition", str(files / "report")],
        ["--vm_definition", str(files / "vm.toml"), "--policy", str(files / "policy.toml")],
        ["--vm_definition", str(files / "vm.toml"), "--certificates", str(files / "table"),
         "--certificates", str(files / "table")],
    ):  # fmt: skip
        assert verify_report.main([*line, *more]) == 64
        shown = capsys.readouterr()
        document = json.loads(shown.out)
        assert document["error"] in shown.err and document["checks"] == []


def test_every_exit_code_of_the_page_is_returned(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command returns every code that the page names for it; get_report and sev-feature-info need their device.

    test_floors_file.py tests those of tcb-floors.
    """
    own = tmp_path / "emulated"
    own.mkdir()
    honest = write_evidence(own)
    bound = ["--report-data", REPORT_DATA.hex()]
    emulated = ["--input", f"{own}/report", "--vm_definition", str(honest), "--root", str(emulated_root())]
    with_table = [*emulated, "--certificates", f"{own}/table"]
    config = ["--vm_definition", str(files / "vm.toml"), *bound]
    (tmp_path / "firmware").write_bytes(firmware(volume=True))
    runs: dict[tuple[str, int], Callable[[], int]] = {
        ("verify_report", 0): lambda: verify_report.main([*words(files, "report", "chain"), *config]),
        ("verify_report", 2): lambda: verify_report.main([*words(files, "flipped", "chain"), *config]),
        ("verify_report", 3): lambda: verify_report.main([*words(files, "report", None), *config]),
        ("verify_report", 64): lambda: verify_report.main([*words(files, "nowhere", "chain"), *config]),
        ("verify_report_emulated", 10): lambda: verify_report_emulated.main([*with_table, *bound]),
        ("verify_report_emulated", 2): lambda: verify_report_emulated.main([*with_table, "--report-data", "11" * 64]),
        ("verify_report_emulated", 3): lambda: verify_report_emulated.main([*emulated, *bound]),
        ("verify_report_emulated", 64): lambda: verify_report_emulated.main(with_table),
        ("inspect_report", 0): lambda: inspect_report.main(words(files, "report", "chain")),
        ("inspect_report", 2): lambda: inspect_report.main(words(files, "flipped", "chain")),
        ("inspect_report", 3): lambda: inspect_report.main(words(files, "report", None)),
        ("inspect_report", 64): lambda: inspect_report.main(words(files, "nowhere", "chain")),
        ("measure", 0): lambda: measure.main(["--firmware", f"{tmp_path}/firmware", "--firmware-reason", "a test"]),
        ("measure", 64): lambda: measure.main(["--firmware", f"{tmp_path}/nowhere"]),
        ("idblock-generator", 64): lambda: idblock_generator.main(
            ["--vm-definition", str(files / "vm.toml"), "--id-key-path", f"{tmp_path}/nowhere"]),
    }  # fmt: skip
    page = (PROJECT / "docs" / "commands.md").read_text()
    head, *rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")][:9]
    cells = {(row[0].strip().strip("`"), int(code)): text.strip()
             for row in rows for code, text in zip(head[1:], row[1:], strict=True) if text.strip()}  # fmt: skip
    elsewhere = {cell for cell in cells if cell[0] in ("get_report", "sev-feature-info", "tcb-floors")} | {
        ("idblock-generator", 0)
    }
    assert runs.keys() == cells.keys() - elsewhere
    for (name, code), run in runs.items():
        assert run() == code, (name, capsys.readouterr())
        assert re.match({0: "accepted|authentic|done", 2: "refused|not authentic", 3: "undecided", 10: "accepted as",
                         64: "wrong command line"}[code], cells[name, code])  # fmt: skip
