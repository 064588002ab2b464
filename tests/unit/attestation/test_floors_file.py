# SPDX-License-Identifier: Apache-2.0
"""Dated files of minimum TCB versions: made from authentic reports, signed, named in verdicts, refused when expired."""

import dataclasses
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sevsnp.attestation import Policy, appraise, verifier
from sevsnp.attestation.authentication import Nobody
from sevsnp.attestation.floors_file import FloorsFile, lowest, parse_file, read_floors, render_file
from sevsnp.commands import tcb_floors
from sevsnp.errors import UserError
from sevsnp.keys.signature import sign
from sevsnp.vm_config.config import Tcb
from sevsnp.vm_config.floors import Floor, Processor
from sevsnp.vm_config.processor import Cpuid
from tests.support.evidence import MEASUREMENT, REPORT_DATA
from tests.support.hierarchy import NOW, Hierarchy

GENOA = Hierarchy()
LATER = Hierarchy(tcb=Tcb(10, 0, 25, 199), leaf="later")
KEYS: dict[str, Any] = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
}
FLOORS = (Floor(Processor(0x19, 0x11, 1), Tcb(10, 0, 23, 84)), Floor(Processor(0x1A, 2), Tcb(1, 2, 3, 4, fmc=5)))
FILE = FloorsFile(3, date(2026, 5, 1), date(2026, 6, 30), FLOORS)


def write(directory: Path, found: FloorsFile = FILE, key: Any = KEYS["P-384"], data: bytes = b"") -> Path:
    path = directory / "tcb-floors.json"
    path.write_bytes(data or render_file(found))
    (directory / "tcb-floors.json.sig").write_bytes(sign(key, path.read_bytes()))
    public = KEYS["P-384"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (directory / "owner.pub.pem").write_bytes(public)
    return path


def judged(directory: Path, at: datetime = NOW, tcb: Tcb | None = None, **stated: Any) -> Any:
    (directory / "policy.toml").write_text(
        'profile = "default"\ntcb_floors = { file = "tcb-floors.json", key = "owner.pub.pem" }\n'
    )
    wanted = Policy.read(directory / "policy.toml", measurement=MEASUREMENT, report_data=REPORT_DATA, **stated)
    by = dataclasses.replace(GENOA, tcb=tcb) if tcb else GENOA
    one = by.evidence()
    return appraise(one.report, wanted, certificates=one.certificates, at=at, endorser=Nobody())


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hierarchy of the test's in place of AMD's."""
    monkeypatch.setattr(verifier, "_AMD", GENOA.root)


def test_the_verdict_names_file_and_days(tmp_path: Path) -> None:
    write(tmp_path)
    found = judged(tmp_path)
    assert found.accepted, found.message
    named = "tcb-floors.json, edition 3 of 2026-05-01, which ends on 2026-06-30"
    about = {str(check.name): check.expected for check in found.checks if named in check.expected}
    assert about.keys() == {"minimum-reported-tcb", "minimum-committed-tcb", "minimum-launch-tcb", "tcb-floor"}
    assert not any("names no CPUID" in note for note in found.notes)
    low = judged(tmp_path, tcb=Tcb(10, 0, 22, 200))
    assert (low.decision, str(low.reason)) == ("refused", "minimum-reported-tcb") and named in low.message
    own = judged(tmp_path, tcb=Tcb(10, 0, 22, 200), minimum_tcb={"any": "a test"})
    assert own.accepted and not any(named in check.expected for check in own.checks)  # the policy's own goes before


def test_evidence_is_refused_after_the_end_of_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    assert judged(tmp_path, datetime(2026, 6, 30, 23, 59, 59, tzinfo=UTC)).accepted
    late = judged(tmp_path, datetime(2026, 7, 1, tzinfo=UTC))
    assert (late.decision, str(late.reason), late.remedy) == ("refused", "tcb-floor", "")
    assert "which ends on 2026-06-30" in late.message and "floors that hold at 2026-07-01" in late.message


def test_only_the_owners_signature_counts(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert read_floors(path, tmp_path / "owner.pub.pem") == FILE == parse_file(render_file(FILE), path)
    path.write_bytes(path.read_bytes().replace(b'"snp": 23', b'"snp": 22'))
    with pytest.raises(UserError, match="its signature is not that of"):
        judged(tmp_path)
    write(tmp_path, key=ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(UserError, match="its signature is not that of"):
        judged(tmp_path)
    (tmp_path / "tcb-floors.json.sig").unlink()
    with pytest.raises(UserError, match=r"tcb-floors\.json\.sig: cannot be read"):
        judged(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"floors 1", b"floors 2", "expected its type"), (b'"version": 3', b'"version": 0', "a version of 1 or more"),
        (b'"version": 3', b'"version": "3"', "a version of 1 or more"), (b'"issued"', b'"made"', "the keys expires"),
        (b"2026-05-01", b"2026-07-01", "an end after its issue"), (b"2026-05-01", b"yesterday", "expected"),
        (b'"snp": 23', b'"snp": 256', "0 to 255 for snp"),
        (b'"snp": 23', b'"snp": 23, "snp": 1', "versions: found the key 'snp' twice"),
        (b'"floors": [', b'"floors": 7, "other": [', "the keys"),
    ],
)  # fmt: skip
def test_a_signed_file_of_wrong_form(old: bytes, new: bytes, words: str, tmp_path: Path) -> None:
    data = render_file(FILE)
    assert data.count(old) >= 1
    write(tmp_path, data=data.replace(old, new, 1))
    with pytest.raises(UserError, match=r"tcb-floors\.json: not a file of minimum TCB") as wrong:
        judged(tmp_path)
    assert words in wrong.value.message


def test_the_minimum_is_the_highest_version_that_all_reports_reach() -> None:
    genoa, bergamo = Cpuid(0x19, 0x11, 1), Cpuid(0x19, 0xA0, 2)
    seen = [(genoa, Tcb(10, 0, 23, 84)), (genoa, Tcb(9, 1, 25, 84)), (bergamo, Tcb(10, 0, 23, 25))]
    made = {str(floor.processor): floor.tcb for floor in lowest(seen)}
    assert made == {"0x19/0x11/1": Tcb(9, 0, 23, 84), "0x19/0xa0/2": Tcb(10, 0, 23, 25)}
    before = (Floor(Processor(0x19, 0x11), Tcb(10, 0, 20, 80)), Floor(Processor(0x1A, 2), Tcb(1, 1, 1, 1, fmc=2)))
    made = {str(floor.processor): floor.tcb for floor in lowest(seen, before)}
    assert made["0x19/0x11/1"] == Tcb(10, 0, 23, 84) and made["0x1a/0x2"] == Tcb(1, 1, 1, 1, fmc=2)


@pytest.mark.parametrize("kind", KEYS)
def test_the_command(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "owner.pem"
    key.write_bytes(KEYS[kind].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    public = tmp_path / "owner.pub.pem"
    public.write_bytes(KEYS[kind].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for name, by in (("one", GENOA), ("two", LATER)):
        (tmp_path / name).write_bytes(by.report())
    chain = (GENOA.certificate, LATER.certificate, GENOA.ask, GENOA.ark)
    (tmp_path / "chain").write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    (tmp_path / "flipped").write_bytes(GENOA.report()[:0x90] + bytes(48) + GENOA.report()[0xC0:])
    (tmp_path / "old").write_bytes(GENOA.report(version=2))
    made = tmp_path / "tcb-floors.json"
    last = date(2099, 12, 31)

    def run(*reports: str, end: date = last, more: tuple[str, ...] = ()) -> int:
        line = ["--key", str(key), "--expires", f"{end}", "-o", str(made), "--at", f"{NOW:%F}", "--offline"]
        line += ["--certificates", f"{tmp_path}/chain", *more]
        return tcb_floors.main([*line, *(word for name in reports for word in ("--input", f"{tmp_path}/{name}"))])

    assert run("one", "two") == 0
    assert capsys.readouterr().out == f"0x19/0x11/1: {Tcb(10, 0, 23, 199).setting()}\n"
    found = read_floors(made, public)
    assert (found.version, found.expires, found.floors) == (
        1,
        last,
        (Floor(Processor(0x19, 0x11, 1), Tcb(10, 0, 23, 199)),),
    )
    assert run("two", more=("--previous", str(made))) == 0
    assert read_floors(made, public)[0] == 2 and read_floors(made, public).floors[0].tcb == LATER.tcb
    assert run("one", more=("--previous", str(made))) == 0  # lower than the edition before: it stays
    assert read_floors(made, public).floors[0].tcb == Tcb(10, 0, 25, 200)
    before = made.read_bytes()
    capsys.readouterr()
    for reports, code, words in (("one flipped", 2, "NOT AUTHENTIC"), ("nowhere", 64, "cannot read"),
                                 ("old", 64, "does not name its processor")):  # fmt: skip
        assert run(*reports.split()) == code
        assert words in capsys.readouterr().err and made.read_bytes() == before
    assert run("one", end=date(2020, 1, 1)) == 64
    (tmp_path / "chain").write_bytes(GENOA.ark.public_bytes(Encoding.PEM))
    assert run("one") == 3


def owner(directory: Path, kind: str) -> Path:
    """A key of the owner in a file, with its public key beside it."""
    path = directory / f"{kind}.pem"
    path.write_bytes(KEYS[kind].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    public = KEYS[kind].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


def command(directory: Path) -> list[str]:
    """A command line for an authentic report, which makes made.json; a key is still to be added."""
    (directory / "report").write_bytes(GENOA.report())
    chain = (GENOA.certificate, GENOA.ask, GENOA.ark)
    (directory / "chain").write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    words = ["--input", f"{directory}/report", "--certificates", f"{directory}/chain", "--at", f"{NOW:%F}", "--offline"]
    return [*words, "--expires", "2099-12-31", "-o", str(directory / "made.json")]


def test_a_previous_edition_counts_only_with_the_owners_signature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, other = owner(tmp_path, "P-384"), owner(tmp_path, "Ed25519")
    before, made, words = write(tmp_path), tmp_path / "made.json", command(tmp_path)

    def run(signer: Path, *more: str, previous: bool = True) -> str:
        """What it says on standard error; nothing if it has made the file."""
        made.unlink(missing_ok=True)
        code = tcb_floors.main([*words, "--key", str(signer), *(["--previous", str(before)] * previous), *more])
        said = capsys.readouterr().err
        assert code == (64 if said else 0) and made.exists() is (code == 0)
        return said

    # Controls: an unchanged edition is taken, with the same key and, if it is named, with another one.
    assert run(key) == ""
    turin = FLOORS[1]  # there is no report of this processor
    assert turin in read_floors(made, key.with_suffix(".pub")).floors
    assert run(other, "--previous-key", str(key.with_suffix(".pub"))) == ""
    assert turin in read_floors(made, other.with_suffix(".pub")).floors
    assert f"not that of {other}\n  if you signed it with another key" in run(other)
    assert "not that of" in run(key, "--previous-key", str(other.with_suffix(".pub")))
    assert "--previous-key: goes with --previous" in run(other, "--previous-key", str(key), previous=False)
    # The same with a lower floor, without a new signature.
    lower = before.read_bytes().replace(b'"fmc": 5', b'"fmc": 0')
    assert lower != before.read_bytes()
    before.write_bytes(lower)
    assert f"{before}: its signature is not that of {key}" in run(key)
    assert "not that of" in run(other, "--previous-key", str(key.with_suffix(".pub")))
    before.with_name(f"{before.name}.sig").unlink()
    assert "tcb-floors.json.sig: cannot be read" in run(key)
