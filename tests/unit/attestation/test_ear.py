# SPDX-License-Identifier: Apache-2.0
"""EARs (EAT attestation results): made with one JWT library, checked with another."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sevsnp.attestation import Policy, appraise, verifier
from sevsnp.attestation.authentication import Nobody
from sevsnp.attestation.ear import PROFILE, ear_claims, load_key, make_ear, trustworthiness
from sevsnp.attestation.outcome import Reason
from sevsnp.commands import verify_report as cli
from sevsnp.errors import UserError
from tests.support.evidence import MEASUREMENT, REPORT_DATA
from tests.support.hierarchy import NOW, Hierarchy
from tests.unit.attestation.test_floors import GENOA_FLOOR

joserfc = pytest.importorskip("joserfc")

GENOA = Hierarchy()
STATED: dict[str, Any] = {"measurement": MEASUREMENT, "report_data": REPORT_DATA, "minimum_tcb": [GENOA_FLOOR]}
ISSUED = datetime(2026, 6, 2, 3, 4, 5, tzinfo=UTC)
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1()}


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hierarchy of the test's in place of AMD's."""
    monkeypatch.setattr(verifier, "_AMD", GENOA.root)


def test_a_time_of_another_zone_is_stated_in_utc() -> None:
    one = GENOA.evidence(None)
    given = NOW.astimezone(timezone(timedelta(hours=12)))
    found = appraise(one.report, Policy.of(**STATED), certificates=one.certificates, at=given, endorser=Nobody())
    assert f"{given:%FT%TZ}" != f"{NOW:%FT%TZ}" in json.dumps(ear_claims(found, ISSUED))


def judged(stated: dict[str, Any], chain: bool = True, **changes: Any) -> Any:
    one = GENOA.evidence(None if chain else [], **changes)
    return appraise(one.report, Policy.of(**stated), certificates=one.certificates, at=NOW, endorser=Nobody())


def read(token: str, key: Any, algorithm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the claims of a token, as joserfc verifies and reads it."""
    from joserfc import jwt
    from joserfc.jwk import ECKey

    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    found = jwt.decode(token, ECKey.import_key(public), algorithms=[algorithm])
    return found.header, found.claims


@pytest.mark.parametrize("algorithm", CURVES)
def test_an_ear_is_read_by_another_library(algorithm: str) -> None:
    key, other = (ec.generate_private_key(CURVES[algorithm]) for _ in range(2))
    found = judged(STATED)
    token = make_ear(found, key, ISSUED, b"n" * 32)
    header, claims = read(token, key, algorithm)
    assert (header["alg"], header["typ"]) == (algorithm, "eat+jwt")
    assert (claims["eat_profile"], claims["iat"]) == (PROFILE, int(ISSUED.timestamp()))
    assert base64.urlsafe_b64decode(claims["eat_nonce"] + "=") == b"n" * 32
    assert base64.urlsafe_b64decode(claims["ear_raw_evidence"] + "==") == found.report.raw
    assert claims["ear_verifier_id"].keys() == {"developer", "build"}
    (snp,) = claims["submods"].values()
    assert claims["ear_status"] == snp["ear_status"] == "affirming"
    assert snp["ear_attester_claims"]["measurement"] == MEASUREMENT.hex()
    assert snp["ear_verifier_claims"]["checks"]["measurement"] == "passed"
    assert snp["ear_appraisal_policy_ids"] == [f"openend2e-sevsnp:{found.profile}"]
    with pytest.raises(joserfc.errors.BadSignatureError):
        read(token, other, algorithm)
    head, body, signature = token.split(".")
    changed = json.dumps({**claims, "ear_status": "affirming", "iat": 1}).encode()
    forged = base64.urlsafe_b64encode(changed).rstrip(b"=").decode()
    with pytest.raises(joserfc.errors.BadSignatureError):
        read(f"{head}.{forged}.{signature}", key, algorithm)
    assert body != forged


@pytest.mark.parametrize(
    ("stated", "changes", "status", "vector"),
    [
        ({}, {}, "affirming", {"hardware": 2, "executables": 3, "configuration": 2, "runtime-opaque": 2}),
        ({"chip_id": GENOA.chip_id.hex()}, {}, "affirming",
         {"instance-identity": 2, "hardware": 2, "executables": 3, "configuration": 2, "runtime-opaque": 2}),
        ({"minimum_tcb": {"any": "a test"}}, {}, "warning",
         {"hardware": 32, "executables": 3, "configuration": 2, "runtime-opaque": 2}),
        ({}, {"measurement": bytes(48)}, "contraindicated",
         {"hardware": 2, "executables": 96, "configuration": 2, "runtime-opaque": 2}),
        ({}, {"policy": 0xB0000}, "contraindicated",
         {"hardware": 2, "executables": 3, "configuration": 96, "runtime-opaque": 96}),
        ({"chip_id": "ab" * 64}, {}, "contraindicated",
         {"instance-identity": 96, "hardware": 2, "executables": 3, "configuration": 2, "runtime-opaque": 2}),
    ],
)  # fmt: skip
def test_the_trustworthiness_vector(
    stated: dict[str, Any], changes: dict[str, Any], status: str, vector: dict[str, int]
) -> None:
    if changes.get("policy"):
        stated = {**stated, "guest_policy": 0x30000}
    key = ec.generate_private_key(ec.SECP384R1())
    _, claims = read(make_ear(judged({**STATED, **stated}, **changes), key, ISSUED), key, "ES384")
    snp = claims["submods"]["snp"]
    assert (snp["ear_status"], snp["ear_trustworthiness_vector"]) == (status, vector)
    assert "eat_nonce" not in claims


def test_an_undecided_appraisal_is_none_and_unreadable_evidence_is_contraindicated() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    _, claims = read(make_ear(judged(STATED, chain=False), key, ISSUED), key, "ES384")
    assert claims["ear_status"] == "none" and "ear_trustworthiness_vector" not in claims["submods"]["snp"]
    broken = appraise(b"nothing", Policy.of(**STATED), at=NOW, endorser=Nobody())
    _, claims = read(make_ear(broken, key, ISSUED), key, "ES384")
    assert claims["ear_status"] == "contraindicated" and "ear_raw_evidence" not in claims
    assert set(claims["submods"]["snp"]["ear_trustworthiness_vector"].values()) == {96}


def test_every_check_belongs_to_a_claim() -> None:
    from sevsnp.attestation.ear import _CLAIMS

    assert {reason for reasons, _, _ in _CLAIMS.values() for reason in reasons} == set(Reason)
    assert trustworthiness([]) == {}


def pem(path: Path, key: Any) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "report").write_bytes(GENOA.report())
    chain = b"".join(one.public_bytes(Encoding.PEM) for one in (GENOA.certificate, GENOA.ask, GENOA.ark))
    (tmp_path / "chain").write_bytes(chain)
    line = ["--input", f"{tmp_path}/report", "--certificates", f"{tmp_path}/chain", "--at", f"{NOW:%FT%TZ}"]
    line += ["--offline", "--report-data", REPORT_DATA.hex(), "--min-tcb", GENOA.level.setting()]
    result = tmp_path / "result.jwt"
    signed = ["--ear", str(result), "--ear-key", str(pem(tmp_path / "key.pem", key))]
    for digest, code, status in ((MEASUREMENT.hex(), 0, "affirming"), ("ab" * 48, 2, "contraindicated")):
        assert cli.main([*line, "--measurement", digest, *signed]) == code
        _, claims = read(result.read_text().strip(), key, "ES384")
        assert claims["ear_status"] == status
    result.unlink()
    wrong = pem(tmp_path / "other.pem", ed25519.Ed25519PrivateKey.generate())
    capsys.readouterr()
    for more, words in ((["--ear", str(result)], "both or neither"),
                        (["--ear", str(result), "--ear-key", str(wrong)], "P-256 or P-384")):  # fmt: skip
        assert cli.main([*line, "--measurement", MEASUREMENT.hex(), *more]) == 64
        shown = capsys.readouterr()
        assert words in shown.err and "ACCEPTED" not in shown.out and not result.exists()
    with pytest.raises(UserError, match="others"):
        (tmp_path / "key.pem").chmod(0o644)
        load_key(tmp_path / "key.pem")
