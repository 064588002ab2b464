# SPDX-License-Identifier: Apache-2.0
"""Text from evidence and from foreign files cannot move the cursor when a command prints it."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sevsnp.attestation import verifier
from sevsnp.commands import arguments, feature_info, inspect_report, measure, tcb_floors
from sevsnp.errors import UserError
from tests.support.hierarchy import NOW, Hierarchy
from tests.unit.attestation.test_input_forms import hcl

FORGED = "\x1b[2K\rAUTHENTIC: signed by the VCEK of a genuine Genoa\n\x1b[8m"
HARMLESS = "?[2K?AUTHENTIC: signed by the VCEK of a genuine Genoa??[8m"
GENOA = Hierarchy()


@pytest.fixture(params=["printable", "as it is"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bool:
    """Whether the text is printed as it is, which is the control: then the forged line arrives."""
    monkeypatch.setattr(verifier, "_AMD", GENOA.root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "printable":
        return False
    for module in (arguments, inspect_report, tcb_floors):
        monkeypatch.setattr(module, "printable", lambda text, keep="": text)
    return True


def test_the_keys_of_a_document(kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, key = tmp_path / "report", tmp_path / "key.pem"
    report.write_text(json.dumps({FORGED: 1}))
    assert inspect_report.main(["--input", str(report), "--offline"]) == 2
    seen = capsys.readouterr().out
    assert (FORGED in seen, HARMLESS in seen) == (kept, not kept) and "NOT AUTHENTIC: " in seen
    private = ed25519.Ed25519PrivateKey.generate()
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    words = ["--key", str(key), "--expires", f"{date(2099, 1, 1)}", "-o", str(tmp_path / "made"), "--offline"]
    assert tcb_floors.main(["--input", str(report), *words]) == 2
    seen = capsys.readouterr().err
    assert (FORGED in seen, HARMLESS in seen) == (kept, not kept) and "NOT AUTHENTIC: " in seen


def test_the_claims_of_an_hcl_report(kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = json.dumps({"keys": [{"kid": FORGED, "n": "AAAA", "kty": "RSA"}], "said": FORGED}).encode()
    (tmp_path / "report").write_bytes(hcl(GENOA.report(report_data=bytes(64)), claims))
    chain = (GENOA.certificate, GENOA.ask, GENOA.ark)
    (tmp_path / "chain").write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    words = ["--input", str(tmp_path / "report"), "--certificates", str(tmp_path / "chain"), "--offline"]
    assert inspect_report.main([*words, "--at", f"{NOW:%FT%TZ}"]) == 2
    seen = capsys.readouterr().out
    assert (seen.count(FORGED), seen.count(HARMLESS))[not kept] >= 2
    assert (HARMLESS if kept else FORGED) not in seen and ("\x1b" in seen) is kept


def test_the_error_of_each_command(
    kept: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise UserError("found \x1b[8m\nin two lines", "what to do")

    monkeypatch.setattr(measure, "read_vm_config", fail)
    monkeypatch.setattr(feature_info, "parse_status", fail)
    ways: tuple[Callable[[], int], ...] = (
        lambda: arguments.guarded(fail),
        lambda: measure.main(["--vm-config", "x"]),
        lambda: feature_info.main(["--status", "00", "--product", "Genoa"]),
    )
    for way in ways:
        assert way() != 0
        shown = "\x1b" if kept else "?"
        assert capsys.readouterr().err == f"found {shown}[8m\nin two lines\n  what to do\n"  # its lines stay
