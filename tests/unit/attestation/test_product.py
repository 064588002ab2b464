# SPDX-License-Identifier: Apache-2.0
"""The product of a version-2 report: taken from the certificate that signed the report, and never guessed."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation import verifier
from sevsnp.attestation.appraisal import appraise
from sevsnp.attestation.authentication import Evidence, Nobody
from sevsnp.attestation.certificates import der
from sevsnp.attestation.chain import TrustRoot, pem
from sevsnp.attestation.inspection import inspect
from sevsnp.attestation.kds import Kds
from sevsnp.attestation.kds_cache import Cache
from sevsnp.attestation.kds_http import Limits
from sevsnp.attestation.product import PRODUCTS, readings
from sevsnp.attestation.sources import Directory
from sevsnp.commands import inspect_report as cli
from sevsnp.vm_config.config import Tcb
from tests.support.evidence import expected
from tests.support.fake_kds import FakeKds, serving
from tests.support.hierarchy import NOW, Hierarchy
from tests.support.waiting import NET

MILAN, GENOA, TURIN = (Hierarchy(product, leaf=f"of a {product}") for product in PRODUCTS)
ALL = (MILAN, GENOA, TURIN)
each = pytest.mark.parametrize("one", ALL, ids=PRODUCTS)


@functools.cache
def every_root() -> TrustRoot:
    """A root for all three products, as AMD's."""
    return TrustRoot("amd", "snp", tuple(pin for one in ALL for pin in one.root.pins), vendor=True)


def bare(one: Hierarchy, **changes: Any) -> Evidence:
    """A version-2 report without any certificate."""
    return one.evidence([], version=2, **changes)


def directory(path: Path, *of: Hierarchy, leaves: bool = True) -> Directory:
    path.mkdir()
    for number, one in enumerate(of):
        (path / f"{number}.pem").write_bytes(pem([one.ask, one.ark]))
        if leaves:
            (path / f"{number}.der").write_bytes(der(one.certificate))
    return Directory.read(path, Nobody())


@each
def test_the_product_is_found_with_a_directory_of_certificates(one: Hierarchy, tmp_path: Path) -> None:
    """The directory has the chains of all products; only one of its leaf certificates signed the report."""
    found = inspect(bare(one), NOW, every_root(), directory(tmp_path / "certs", *ALL))
    assert (found.authentic, found.product, found.reason) == (True, one.product, "")
    assert found.fields["reported_tcb"] == {
        name: value for name, value in vars(one.level).items() if value is not None
    }  # fmt: skip


@each
def test_the_product_is_found_with_the_service_and_its_cache(
    one: Hierarchy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is asked for each product; Turin's chip id has 8 bytes there."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    cache = Cache(tmp_path / "kds")
    answers = {path: answer for other in ALL for path, answer in FakeKds.of(other).answers.items()}
    # The service answers for the chip of this report and for no other.
    answers = {path: answer for path, answer in answers.items() if not path.endswith("/")}
    chip = one.chip[:8] if one.product == "Turin" else one.chip
    answers[f"/vcek/v1/{one.product}/{chip.hex()}?"] = der(one.certificate)
    with serving(FakeKds(answers)) as fake:
        service = Kds(every_root(), cache, fake.url, limits=Limits(request=NET))
        assert inspect(bare(one), NOW, every_root(), service).product == one.product
    offline = Kds(every_root(), cache, offline=True)
    found = inspect(bare(one), NOW, every_root(), offline)
    assert (found.authentic, found.product) == (True, one.product), found.reason
    # Control: without the VCEK in the cache, nothing is known.
    next(cache.directory.glob("vcek-*.der")).unlink()
    assert inspect(bare(one), NOW, every_root(), offline).authentic is None


def test_the_likely_product_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(FakeKds({})) as fake:
        low = Hierarchy("Turin", tcb=Tcb(3, 0, 0, 7))
        found = inspect(bare(low), NOW, every_root(), Kds(every_root(), Cache(tmp_path / "kds"), fake.url))
    assert [path.split("/")[3] for path in fake.asked] == ["Turin", "Milan", "Genoa"] and found.authentic is None


@each
def test_a_product_that_no_certificate_confirms_is_undecided(one: Hierarchy, tmp_path: Path) -> None:
    """No certificate confirms a product: the result is undecided, and the text names the option --product."""
    certs = directory(tmp_path / "certs", *ALL, leaves=False)
    for endorser in (Nobody(), certs):
        found = inspect(bare(one), NOW, every_root(), endorser)
        assert (found.authentic, found.product) == (None, "")
        assert one.product in found.possible_products and "--product" in found.reason
        assert endorser is certs or "no other source was asked" in found.reason  # the endorser's own words
        assert found.fields["measurement"] and found.to_json()["undecided"] is True


def test_the_bytes_of_the_report_exclude_products() -> None:
    """The chip id of a Milan cannot be a Turin's; and the bytes of a TCB version may fit one layout only."""
    assert set(readings(bare(MILAN).report)) == {"Milan", "Genoa"}
    assert set(readings(bare(TURIN).report)) == {"Turin"}  # its SNP byte is reserved in the other layout
    # These bytes fit both layouts. A chip id of more than eight bytes is no Turin's.
    for chip in (bytes(range(1, 65)), bytes(8) + b"x" + bytes(55)):
        assert set(readings(bare(Hierarchy("Milan", tcb=Tcb(3, 0, 0, 7), chip=chip)).report)) == {"Milan", "Genoa"}
    low = Hierarchy("Turin", tcb=Tcb(3, 0, 0, 7))
    assert set(readings(bare(low).report)) == set(PRODUCTS)
    # Where the layouts differ, each is shown.
    found = inspect(bare(low), NOW, every_root())
    assert found.fields["reported_tcb"]["Turin"] == {"fmc": 3, "bootloader": 3, "tee": 0, "snp": 0, "microcode": 7}
    assert found.fields["reported_tcb"]["Genoa"] == {"bootloader": 3, "tee": 3, "snp": 0, "microcode": 7}


@each
def test_the_product_given_by_the_caller_counts_only_without_a_certificate(one: Hierarchy, tmp_path: Path) -> None:
    said = inspect(bare(one), NOW, every_root(), Nobody(), one.product)
    assert (said.authentic, said.product, said.possible_products) == (None, one.product, (one.product,))
    # A wrong word is overruled by the certificate that signed the report.
    for wrong in PRODUCTS:
        found = inspect(bare(one), NOW, every_root(), directory(tmp_path / wrong, *ALL), wrong)
        assert (found.authentic, found.product) == (True, one.product)


def test_a_forged_report_is_still_refused(tmp_path: Path) -> None:
    """The directory has the VCEK of the report's chip and TCB version, but this VCEK did not sign the report."""
    for one in ALL:
        raw = bytearray(bare(one).report)
        raw[0x90] ^= 1
        forged = Evidence(bytes(raw))
        # Its certificate is in the evidence, or the caller says the product.
        chain = Evidence(bytes(raw), certificates=(pem([one.certificate, one.ask, one.ark]),))
        for evidence, product in ((chain, None), (forged, one.product)):
            certs = directory(tmp_path / f"{one.product}-{product}", *ALL)
            found = inspect(evidence, NOW, every_root(), certs, product)
            assert (found.authentic, "not signed" in found.reason) == (False, True), found.reason


def test_certificates_of_other_chips_do_not_prove_a_forgery(tmp_path: Path) -> None:
    """A directory with only the VCEKs of other chips proves nothing about the report, whatever its version."""
    other = Hierarchy(chip=b"y" * 64, leaf="another")
    certs = directory(tmp_path / "certs", other)
    for version in (2, 3, 5):
        found = inspect(GENOA.evidence([], version=version), NOW, every_root(), certs)
        assert found.authentic is None, found.reason
    # Control: the certificate of this chip and TCB version proves it.
    certs = directory(tmp_path / "same", Hierarchy(leaf="another"))
    assert inspect(GENOA.evidence([], version=3), NOW, every_root(), certs).authentic is False


def test_an_appraisal_names_the_product_that_signed(tmp_path: Path) -> None:
    """The VM config is for Genoa, and a Turin signed the report: it is refused for its product, not for its format."""
    certs = directory(tmp_path / "certs", *ALL)
    changes: dict[str, Any] = {"platform": "snp", "platform_info_required": 0, "platform_info_forbidden": 0}
    accepted = appraise(bare(GENOA), expected(**changes), NOW, every_root(), certs)
    assert accepted.decision == "accepted", accepted.message
    found = appraise(bare(TURIN), expected(**changes), NOW, every_root(), certs)
    assert (found.decision, str(found.reason)) == ("refused", "product") and "Turin" in found.message
    # Without any certificate that is not known. The VM config's product is no reason to call the report malformed.
    found = appraise(bare(TURIN), expected(**changes), NOW, every_root(), Nobody())
    assert (found.decision, str(found.reason)) == ("undecided", "certificates")
    assert "does not have Genoa's layout" in found.message and "--product" not in found.message


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verifier, "_AMD", every_root())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory(tmp_path / "certs", GENOA, TURIN)
    (tmp_path / "report").write_bytes(bare(GENOA).report)
    words = ["--input", f"{tmp_path}/report", "--at", f"{NOW:%F}", "--offline"]
    assert cli.main([*words, "--certs", f"{tmp_path}/certs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["product"] == "Genoa"
    assert cli.main(words) == 3
    shown = capsys.readouterr().out
    assert "measurement: " in shown and "UNDECIDED" in shown and "--product" in shown
    assert cli.main([*words, "--product", "Genoa"]) == 3
    assert "vcek-Genoa-" in capsys.readouterr().out
