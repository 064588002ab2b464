# SPDX-License-Identifier: Apache-2.0
"""The sources of certificates for attest_*: a mirror, a local directory, or neither and no network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.attestation import kds, kds_cache
from sevsnp.attestation import verifier as production
from sevsnp.attestation.appraisal import Expected, Refused, Undecided
from sevsnp.attestation.certificates import der
from sevsnp.attestation.chain import pem
from sevsnp.errors import UserError
from sevsnp.owner.attestation import refusal, verifier
from sevsnp.owner.certificate_sources import CertificateSources
from sevsnp.settings.values import web_address
from tests.support.evidence import REPORT_DATA, config
from tests.support.fake_kds import FakeKds, serving
from tests.support.hierarchy import NOW, Hierarchy

GENOA = Hierarchy()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKds]:
    """A mirror of AMD's service. Nothing listens where the service itself is, and the cache is empty."""
    monkeypatch.setattr(production, "_AMD", GENOA.root)
    monkeypatch.setattr(kds, "KDS", "http://127.0.0.1:9")
    monkeypatch.setattr(kds_cache, "_failed", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(FakeKds.of(GENOA)) as one:
        yield one


def decision(sources: CertificateSources | None, **policy: object) -> str:
    """What the owner's verifier says of a guest whose host gives no certificates."""
    wanted = config(platform="snp", policy=policy, platform_info_required=0, platform_info_forbidden=0)
    try:
        verifier(wanted, Path(), sources)(GENOA.evidence([]), Expected.of(wanted, REPORT_DATA), NOW)
    except Undecided:
        return "undecided"
    except Refused as refused:
        return str(refused.reason)
    return "accepted"


@pytest.mark.usefixtures("fake")
def test_the_error_for_missing_certificates_is_not_called_a_refusal() -> None:
    wanted = config(platform="snp", platform_info_required=0, platform_info_forbidden=0)
    for evidence, word in ((GENOA.evidence([]), "UNDECIDED"), (GENOA.evidence(vmpl=1), "REFUSED")):
        with pytest.raises(Refused) as refused:
            verifier(wanted, Path(), None)(evidence, Expected.of(wanted, REPORT_DATA), NOW)
        error = refusal(refused.value, wanted, "127.0.0.1:1")
        assert error.message.startswith(f"127.0.0.1:1: {word} (") and error.hint


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    directory = tmp_path / "certs"
    directory.mkdir()
    (directory / "chain").write_bytes(pem([GENOA.ask, GENOA.ark]))
    (directory / "vcek").write_bytes(der(GENOA.certificate))
    return directory


def test_a_mirror(fake: FakeKds) -> None:
    assert decision(None) == "undecided"  # control: AMD's own service is not there
    assert decision(CertificateSources(fake.url), revocation="required") == "accepted"
    assert len(fake.asked) == 3
    assert decision(CertificateSources()) == "accepted" and len(fake.asked) == 3  # from the cache


def test_a_directory(fake: FakeKds, certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert decision(CertificateSources(fake.url, certs)) == "accepted"
    assert fake.asked == ["/vcek/v1/Genoa/crl"]
    assert f"{certs}: 3 certificates, 0 revocation lists" in capsys.readouterr().out
    (certs / "list").write_bytes(GENOA.crl([GENOA.ask.serial_number]))
    assert decision(CertificateSources(directory=certs)) == "revocation"
    with pytest.raises(UserError, match="CERTS=/nowhere: /nowhere: cannot read: No such file"):
        decision(CertificateSources(directory=Path("/nowhere")))


def test_offline(fake: FakeKds, certs: Path) -> None:
    assert decision(CertificateSources(fake.url, offline=True)) == "undecided" and fake.asked == []
    assert decision(CertificateSources(fake.url, certs, offline=True)) == "accepted" and fake.asked == []
    assert decision(CertificateSources(fake.url, certs)) == "accepted" and fake.asked != []  # control


def test_the_mirror_s_url() -> None:
    for good in ("", "https://kds.example.org", "http://127.0.0.1:8080/amd/", "https://[::1]:8443"):
        assert web_address(good) == good
    for wrong in (
        "kds.example.org",
        "ftp://kds",
        "https://",
        "https://me:password@kds",
        "https://kds/?a=b",
        "https:// a",
    ):
        with pytest.raises(ValueError, match=r"^$"):
            web_address(wrong)
