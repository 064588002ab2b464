# SPDX-License-Identifier: Apache-2.0
"""AMD's key distribution service: the right requests, a cache, and a hostile service, which can only withhold."""

import dataclasses
import os
import stat
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from sevsnp.attestation.appraisal import appraise
from sevsnp.attestation.certificates import der
from sevsnp.attestation.chain import pem
from sevsnp.attestation.checklist import Unreachable
from sevsnp.attestation.kds import Kds
from sevsnp.attestation.kds_cache import Cache
from sevsnp.attestation.kds_http import Limits
from sevsnp.attestation.outcome import Appraisal
from sevsnp.attestation.sources import Directory
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Tcb
from tests.support import fake_kds
from tests.support.evidence import expected
from tests.support.fake_kds import FakeKds, serving
from tests.support.hierarchy import NOW, Hierarchy
from tests.support.waiting import NET

GENOA, TURIN = Hierarchy(), Hierarchy("Turin")
OTHER_KEYS = Hierarchy(keys="-other")
CHIP_PATH, CHAIN, CRL = "/vcek/v1/Genoa/", "/vcek/v1/Genoa/cert_chain", "/vcek/v1/Genoa/crl"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache" / "kds")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKds]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(FakeKds.of(GENOA)) as one:
        yield one


def service(fake: FakeKds, cache: Cache, by: Hierarchy = GENOA, **more: Any) -> Kds:
    slept: list[float] = []
    limits = more.pop("limits", Limits(request=NET, patience=20.0))
    return Kds(by.root, cache, fake.url, limits=limits, sleep=more.pop("sleep", slept.append), **more)


def outcome(endorser: Any, by: Hierarchy = GENOA, **changes: Any) -> Appraisal:
    wanted = expected(
        platform="snp", product=by.product, policy={"revocation": "required"}, platform_info_required=0,
        platform_info_forbidden=0, minimum_tcb=Tcb(1, 0, 1, 1, 1 if by.product == "Turin" else None),
    )  # fmt: skip
    return appraise(by.evidence([], **changes), wanted, NOW, by.root, endorser)


def kept(cache: Cache) -> set[str]:
    return {path.name for path in cache.directory.iterdir()} if cache.directory.exists() else set()


def test_evidence_without_certificates(fake: FakeKds, cache: Cache) -> None:
    assert outcome(service(fake, cache)).decision == "accepted"
    spls = "blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=200"
    assert fake.asked == [CHAIN, f"{CHIP_PATH}{GENOA.chip.hex()}?{spls}", CRL]
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.directory.iterdir()} == {0o600}
    fake.asked.clear()
    assert outcome(service(fake, cache)).decision == "accepted" and fake.asked == []
    assert outcome(service(fake, cache, offline=True)).decision == "accepted" and fake.asked == []
    assert outcome(service(fake, Cache(cache.directory / "empty"), offline=True)).decision == "undecided"


def test_the_reported_tcb_is_asked_for(fake: FakeKds, cache: Cache) -> None:
    higher = Tcb(11, 0, 24, 201)
    assert outcome(service(fake, cache), current_tcb=higher, committed_tcb=higher).decision == "accepted"
    assert "blSPL=10&" in fake.asked[1]


def test_a_turin_vcek_is_requested_with_eight_bytes_of_chip_id_and_fmc(
    monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(FakeKds.of(TURIN)) as fake:
        assert outcome(service(fake, cache, TURIN), TURIN).decision == "accepted"
    spls = "fmcSPL=03&blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=200"
    assert f"/vcek/v1/Turin/{TURIN.chip[:8].hex()}?{spls}" in fake.asked
    name = f"vcek-Turin-{TURIN.chip[:8].hex()}-fmcSPL03-blSPL10-teeSPL00-snpSPL23-ucodeSPL200.der"
    assert name in kept(cache)


def test_each_tcb_version_and_chip_has_its_own_cache_file(fake: FakeKds, cache: Cache) -> None:
    assert outcome(service(fake, cache)).decision == "accepted"
    for other in (Hierarchy(tcb=Tcb(10, 0, 23, 201)), Hierarchy(chip=b"y" * 64)):
        fake.answers[CHIP_PATH] = der(other.certificate)
        assert outcome(service(fake, cache), other).decision == "accepted"
    assert sum(name.startswith("vcek-Genoa-") for name in kept(cache)) == 3


# What a hostile service answers, at which path, and how it comes out. Nothing of it is ever kept.
HOSTILE: dict[str, tuple[str, Callable[[], bytes | int | Callable[[Any], None]]]] = {
    "another ARK": (CHAIN, lambda: pem([OTHER_KEYS.ask, OTHER_KEYS.ark])),
    "another ASK": (CHAIN, lambda: pem([OTHER_KEYS.ask, GENOA.ark])),
    "another product": (CHAIN, lambda: pem([TURIN.ask, TURIN.ark])),
    "no ARK": (CHAIN, lambda: pem([GENOA.ask])),
    "three": (CHAIN, lambda: pem([GENOA.ask, GENOA.ark, TURIN.ark])),
    "other keys": (CHIP_PATH, lambda: der(OTHER_KEYS.certificate)),
    "another chip": (CHIP_PATH, lambda: der(Hierarchy(chip=b"y" * 64).certificate)),
    "a lower TCB": (CHIP_PATH, lambda: der(Hierarchy(tcb=Tcb(10, 0, 22, 200)).certificate)),
    "expired": (CHIP_PATH, lambda: der(Hierarchy(leaf_days=(-30, -1)).certificate)),
    "of tomorrow": (CHIP_PATH, lambda: der(Hierarchy(leaf_days=(1, 30)).certificate)),
    "RSA-2048": (CHIP_PATH, lambda: der(Hierarchy(leaf_rsa=True).certificate)),
    "P-256": (CHIP_PATH, lambda: der(Hierarchy(leaf="P-256").certificate)),
    "a VLEK": (CHIP_PATH, lambda: der(Hierarchy(vlek=True).certificate)),
    "the ASK": (CHIP_PATH, lambda: der(GENOA.ask)),
    "HTML": (CHIP_PATH, lambda: b"<!doctype html><title>Sign in</title>"),
    "nothing": (CHIP_PATH, lambda: b""),
    "half of it": (CHIP_PATH, lambda: der(GENOA.certificate)[:500]),
    "not there": (CHIP_PATH, lambda: 404),
    "forbidden": (CHIP_PATH, lambda: 403),
    "too many requests": (CHIP_PATH, lambda: 429),
    "broken": (CHIP_PATH, lambda: 503),
    "a trickle": (CHIP_PATH, lambda: fake_kds.trickle),
    "a trickle of headers": (CHIP_PATH, lambda: fake_kds.trickle_headers),
    "no end": (CHIP_PATH, lambda: fake_kds.pour),
    "hanging up": (CHIP_PATH, lambda: fake_kds.hang_up),
    "an expired list": (CRL, lambda: GENOA.crl(days=(-30, -1))),
    "a list of tomorrow": (CRL, lambda: GENOA.crl(days=(1, 30))),
    "another's list": (CRL, lambda: OTHER_KEYS.crl()),
    "a list by the ASK": (CRL, lambda: GENOA.crl(key="ask")),
    "a list of another name": (CRL, lambda: GENOA.crl(issuer="SEV")),
    "a list of HTML": (CRL, lambda: b"<html>"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_service_cannot_make_evidence_accepted(name: str, fake: FakeKds, cache: Cache) -> None:
    path, make_answer = HOSTILE[name]
    answer = make_answer()
    honest = fake.answers[path]
    fake.answers = {path: answer, **{key: value for key, value in fake.answers.items() if key != path}}
    if path == CHIP_PATH:  # the shortest path last, or it would answer for all
        fake.answers = dict(sorted(fake.answers.items(), key=lambda item: -len(item[0])))
    slow = answer in (fake_kds.trickle, fake_kds.trickle_headers)
    found = outcome(service(fake, cache, limits=Limits(request=1.0 if slow else NET, patience=20.0)))
    assert found.decision == "undecided" and found.message
    # A service that goes on and on was left in the middle of it.
    assert fake.finished == []
    # Not poisoned: as soon as the service is honest, all is well; and nothing was kept that is not.
    fake.answers[path] = honest
    fake.asked.clear()
    assert outcome(service(fake, cache)).decision == "accepted"
    assert any(one.startswith(path) for one in fake.asked)


def test_a_redirect_is_not_followed(fake: FakeKds, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its target answers with the genuine VCEK, so a client that followed it would accept the evidence."""
    chip = CHIP_PATH + GENOA.chip.hex()
    answers: dict[str, Any] = {chip: fake_kds.redirect, chip.replace("/vcek/", "/elsewhere/"): der(GENOA.certificate)}
    fake.answers = {**answers, **fake.answers}
    found = outcome(service(fake, cache))
    assert found.decision == "undecided" and "answers 302" in found.message
    assert not any(path.startswith("/elsewhere/") for path in fake.asked)
    # Control: the same client, if it followed redirects.
    get = requests.Session.get
    monkeypatch.setattr(
        requests.Session, "get", lambda self, url, **how: get(self, url, **{**how, "allow_redirects": True})
    )
    assert outcome(service(fake, cache)).decision == "accepted"
    assert any(path.startswith("/elsewhere/") for path in fake.asked)


def test_a_revoked_ask_is_refused(fake: FakeKds, cache: Cache) -> None:
    assert outcome(service(fake, cache)).decision == "accepted"  # control; its list is now in the cache
    fake.answers[CRL] = GENOA.crl([GENOA.ask.serial_number])
    (cache.directory / "vcek-Genoa.crl").unlink()
    found = outcome(service(fake, cache))
    assert (found.decision, str(found.reason)) == ("refused", "revocation")


def test_waits_as_a_429_asks_for_and_gives_up(fake: FakeKds, cache: Cache) -> None:
    fake.answers = {CHIP_PATH + GENOA.chip.hex(): 429, **fake.answers}
    slept: list[float] = []
    assert outcome(service(fake, cache, sleep=slept.append)).decision == "undecided"
    assert slept[0] == 3.0 and max(slept) <= 10.0 and sum(slept) <= 20.0  # Retry-After says 3
    calls = iter([429, 429])

    def busy_at_first(handler: Any) -> None:
        status = next(calls, 200)
        handler.send_response(status)
        handler.end_headers()
        if status == 200:
            handler.wfile.write(der(GENOA.certificate))

    fake.answers[CHIP_PATH + GENOA.chip.hex()] = busy_at_first
    assert outcome(service(fake, cache)).decision == "accepted"


def test_false_cache_content_is_not_accepted(fake: FakeKds, cache: Cache) -> None:
    assert outcome(service(fake, cache)).decision == "accepted"
    wrong = {
        "cert_chain": pem([OTHER_KEYS.ask, OTHER_KEYS.ark]), "vcek": der(OTHER_KEYS.certificate), "crl": b"garbage",
    }  # fmt: skip
    for path in list(cache.directory.iterdir()):
        kind = "crl" if path.suffix == ".crl" else "cert_chain" if path.suffix == ".pem" else "vcek"
        content = path.read_bytes()
        for bad in (wrong[kind], b"", content[:-100]):
            path.write_bytes(bad)
            assert outcome(service(fake, cache, offline=True)).decision == "undecided"
            assert outcome(service(fake, cache)).decision == "accepted"  # asked for anew
            assert path.read_bytes() == content


def test_a_cache_that_others_can_write_to_is_refused(fake: FakeKds, cache: Cache) -> None:
    assert outcome(service(fake, cache)).decision == "accepted"  # control
    for mode in (0o777, 0o770, 0o720, 0o702):
        cache.directory.chmod(mode)
        with pytest.raises(UserError, match="others can write"):
            outcome(service(fake, cache))
    for mode in (0o755, 0o750, 0o700):  # control: others may read
        cache.directory.chmod(mode)
        assert outcome(service(fake, cache)).decision == "accepted"


def test_another_users_cache_is_refused(fake: FakeKds, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(service(fake, cache)).decision == "accepted"  # control
    monkeypatch.setattr(os, "geteuid", lambda: cache.directory.stat().st_uid + 1)
    with pytest.raises(UserError, match="others can write"):
        outcome(service(fake, cache))


def test_an_unwritable_cache_does_not_change_the_verdict(fake: FakeKds, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    assert outcome(service(fake, Cache(tmp_path / "file" / "kds"))).decision == "accepted"


def test_an_expired_vcek_in_the_cache_is_asked_for_again(fake: FakeKds, cache: Cache) -> None:
    one = service(fake, cache)
    late = NOW + timedelta(days=400)
    assert one.leaf("Genoa", GENOA.chip, GENOA.tcb, NOW) == GENOA.certificate
    with pytest.raises(Unreachable, match="valid from"):
        one.leaf("Genoa", GENOA.chip, GENOA.tcb, late)
    renewed = Hierarchy(leaf_days=(300, 700))  # AMD issues the same key anew
    fake.answers[CHIP_PATH] = der(renewed.certificate)
    assert one.leaf("Genoa", GENOA.chip, GENOA.tcb, late) == renewed.certificate


def test_a_masked_chip_id_is_not_asked_for(fake: FakeKds, cache: Cache) -> None:
    assert outcome(service(fake, cache), chip_id=bytes(64)).decision == "undecided"
    assert fake.asked == []


def test_certificates_from_a_local_directory_are_used(tmp_path: Path, fake: FakeKds, cache: Cache) -> None:
    one = tmp_path / "certs"
    one.mkdir()
    (one / "README").write_text("left alone")
    behind = service(fake, cache, offline=True)
    assert outcome(Directory.read(one, behind)).decision == "undecided"
    (one / "chain.pem").write_bytes(pem([TURIN.ark, OTHER_KEYS.ask, GENOA.ask, GENOA.ark, OTHER_KEYS.ark]))
    others = (Hierarchy(keys="-other", leaf="third"), Hierarchy(chip=b"y" * 64, leaf="another"))
    for number, other in enumerate((*others, GENOA)):
        (one / f"{number}.der").write_bytes(der(other.certificate))
    assert str(outcome(Directory.read(one, behind)).reason) == "revocation"
    (one / "old.crl").write_bytes(GENOA.crl(days=(-60, -30)))
    assert str(outcome(Directory.read(one, behind)).reason) == "revocation"
    (one / "genoa.crl").write_bytes(GENOA.crl())
    assert outcome(Directory.read(one, behind)).decision == "accepted"
    # The newest list counts, not the one that suits.
    (one / "newer.crl").write_bytes(GENOA.crl([GENOA.ask.serial_number], days=(0, 30)))
    assert outcome(Directory.read(one, behind)).decision == "refused"
    with pytest.raises(UserError, match="cannot read"):
        Directory.read(tmp_path / "nowhere", behind)


def test_the_service_cannot_choose_the_root(fake: FakeKds, cache: Cache) -> None:
    """The service client here trusts another root and passes its certificates on; the verifier still refuses them."""
    fake.answers = FakeKds.of(OTHER_KEYS).answers
    believing = dataclasses.replace(service(fake, cache), root=OTHER_KEYS.root)
    wanted = expected(platform="snp", platform_info_required=0, platform_info_forbidden=0)
    one = OTHER_KEYS.evidence([])
    assert appraise(one, wanted, NOW, OTHER_KEYS.root, believing).decision == "accepted"  # control
    found = appraise(one, wanted, NOW, GENOA.root, believing)
    assert (found.decision, str(found.reason)) == ("refused", "unknown-root")
