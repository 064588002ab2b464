# SPDX-License-Identifier: Apache-2.0
"""inspect_report: all fields of a report, and whether it is authentic."""

import json
from pathlib import Path

import pytest

from sevsnp.attestation import kds
from sevsnp.attestation.inspection import describe, inspect
from sevsnp.attestation.report import parse_report
from sevsnp.commands import inspect_report as inspect_cli
from sevsnp.commands import verify_report as cli
from tests.support.evidence import evidence, psp, real_data
from tests.support.hierarchy import NOW, Hierarchy

GENOA = Hierarchy()


def test_the_output_says_whether_a_report_is_authentic() -> None:
    found = inspect(GENOA.evidence(), NOW, GENOA.root)
    assert (found.authentic, found.reason, found.product, found.signer) == (True, "", "Genoa", "VCEK")
    document = json.loads(json.dumps(found.to_json()))
    assert document.keys() >= {"authentic", "reason", "product", "signer", "fields"}
    # What nobody should accept may still be authentic: a debug policy, a zero REPORT_DATA.
    odd = inspect(GENOA.evidence(policy=0xB0000, report_data=bytes(64)), NOW, GENOA.root)
    assert odd.authentic and odd.fields["policy"]["debug"] is True
    forged = inspect(Hierarchy(keys="-other").evidence(), NOW, GENOA.root)
    assert forged.authentic is False and "not a trusted root" in forged.reason
    assert inspect(GENOA.evidence([]), NOW, GENOA.root).authentic is None
    assert inspect(GENOA.evidence(chip_id=b"x" * 64), NOW, GENOA.root).authentic is False
    broken = inspect(evidence(), NOW, GENOA.root)
    assert broken.authentic is False and broken.to_json()["authentic"] is False
    assert (broken.to_json()["emulated"], broken.to_json()["confidential"]) == (True, False)
    assert document["emulated"] is False and "confidential" not in document
    turin = inspect(GENOA.evidence(chip_id=b"EMULATED".ljust(64, b"\0")), NOW, GENOA.root)
    assert turin.emulated and turin.authentic is False
    short = inspect(type(evidence())(b"short"), NOW, GENOA.root)
    assert short.authentic is False and short.fields == {} and "1184" in short.reason


def test_a_version_2_report_takes_its_product_from_its_certificate() -> None:
    turin = Hierarchy("Turin")
    for one in (Hierarchy("Milan"), GENOA, turin):
        found = inspect(one.evidence(version=2), NOW, one.root)
        assert (found.authentic, found.product) == (True, one.product), found.reason
    assert found.fields["reported_tcb"]["fmc"] == 3


def test_siena_and_bergamo_are_named() -> None:
    from sevsnp.vm_config.processor import Cpuid

    assert inspect(GENOA.evidence(cpuid=Cpuid(0x19, 0xA0, 2)), NOW, GENOA.root).product == "Bergamo/Siena"


def test_every_field_is_described() -> None:
    report = parse_report(GENOA.report(mitigations=5), "Genoa")
    fields = describe(report)
    renamed = {"raw", "product", "signature_algorithm", "author_key", "launch_mitigations", "current_mitigations",
               "signature_r", "signature_s"}  # fmt: skip
    assert {name for name in vars(report) if name not in renamed} <= set(fields)
    assert fields["launch_mit_vector"] == "0x5"


@pytest.mark.parametrize(
    ("report", "vcek", "product"),
    [("genoa-v3/report.bin", "genoa-v3/vcek.pem", "Genoa"), ("milan-v2/report.hex", "milan-v2/vcek.der", "Milan"),
     ("milan-v2-debug/report.bin", "milan-v2-debug/vcek.der", "Milan")],
)  # fmt: skip
def test_real_reports_are_authentic(
    report: str,
    vcek: str,
    product: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["--input", str(real_data(report)), "--certs", str(real_data("amd-chains")), "--at", "2026-06-01"]
    words.append("--offline")
    assert inspect_cli.main([*words, "--certificates", str(real_data(vcek)), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["authentic"], document["product"], document["signer"]) == (True, product, "VCEK")
    assert document["fields"]["policy"]["debug"] is ("debug" in report)
    assert inspect_cli.main([*words, "--certificates", str(real_data(vcek))]) == 0
    assert "AUTHENTIC" in capsys.readouterr().out
    assert inspect_cli.main(words) == 3  # the VCEK is nowhere
    monkeypatch.setattr(kds, "KDS", "http://127.0.0.1:9")
    assert inspect_cli.main([word for word in words if word != "--offline"]) == 3
    assert inspect_cli.main([*words, "--certificates", str(real_data(vcek)), "--at", "2050-01-01"]) == 2


def test_wrong_command_lines() -> None:
    for words in (
        [],
        ["--input", "x", "--at", "yesterday"],
        ["--input", "x", "--at", "0001-01-01T00:00+14:00"],
        ["--input", "x", "--bogus"],
    ):
        with pytest.raises(SystemExit) as caught:
            inspect_cli.main(words)
        assert caught.value.code == 64
    assert inspect_cli.main(["--input", "/nowhere"]) == 64


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    from sevsnp.commands import feature_info
    from sevsnp.commands import idblock_generator as idblock_cli
    from sevsnp.commands import measure as measure_cli

    for main in (cli.main, inspect_cli.main, measure_cli.main, idblock_cli.main, feature_info.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        text = capsys.readouterr().out
        assert len(text.splitlines()) <= (34 if main in (cli.main, measure_cli.main) else 25), text
    assert psp()
