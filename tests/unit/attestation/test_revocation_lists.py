# SPDX-License-Identifier: Apache-2.0
"""Revocation lists: expired ones still revoke, PEM is read like DER, and an optional list causes no waiting."""

import base64
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation import kds_cache
from sevsnp.attestation.appraisal import appraise
from sevsnp.attestation.authentication import Endorser, Evidence, Nobody
from sevsnp.attestation.certificates import ARK_GUID, ASK_GUID, CRL_GUID, VCEK_GUID, der
from sevsnp.attestation.kds import Kds
from sevsnp.attestation.kds_cache import Cache
from sevsnp.attestation.kds_http import OPTIONAL, Limits
from sevsnp.attestation.outcome import Appraisal
from sevsnp.attestation.revocation import CrlError, read_crl
from sevsnp.attestation.sources import Directory
from tests.support.evidence import ROOT, expected
from tests.support.fake_kds import FakeKds, Handler, serving
from tests.support.fuzz_targets import _table_of
from tests.support.hierarchy import NOW, Hierarchy, load_crl
from tests.support.waiting import NET, wait_until

GENOA = Hierarchy()
SERIAL = {"revoked": True, "good": False}
CRL, CHAIN = "/vcek/v1/Genoa/crl", "/vcek/v1/Genoa/cert_chain"
# In force; past its nextUpdate; not in force yet.
DAYS = {"in force": (-1, 30), "old": (-60, -30), "of tomorrow": (1, 30)}


def crl(kind: str, days: str = "in force") -> bytes:
    return GENOA.crl([GENOA.ask.serial_number] if SERIAL[kind] else [], days=DAYS[days])


def pem(data: bytes) -> bytes:
    text = "\n".join(textwrap.wrap(base64.b64encode(data).decode(), 64))
    return f"-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n".encode()


def outcome(endorser: Endorser, *, demanded: bool = False, table: bytes = b"") -> Appraisal:
    policy = {"revocation": "required"} if demanded else {}
    wanted = expected(platform="snp", policy=policy, platform_info_required=0, platform_info_forbidden=0)
    evidence = Evidence(GENOA.report(), table) if table else GENOA.evidence()
    return appraise(evidence, wanted, NOW, GENOA.root, endorser)


def reason(found: Appraisal) -> tuple[str, str]:
    return found.decision, str(found.reason or "")


REFUSED, ACCEPTED, UNDECIDED = ("refused", "revocation"), ("accepted", ""), ("undecided", "revocation")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKds]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(kds_cache, "_failed", {})
    with serving(FakeKds.of(GENOA)) as one:
        yield one


def service(fake: FakeKds, tmp_path: Path, **more: Any) -> Kds:
    return Kds(GENOA.root, Cache(tmp_path / "kds"), fake.url, **{"limits": Limits(request=NET), **more})


@pytest.mark.parametrize("days", DAYS)
@pytest.mark.parametrize("form", ["DER", "PEM"])
@pytest.mark.parametrize("source", ["directory", "service", "cache", "table"])
def test_a_revocation_counts_for_ever(source: str, form: str, days: str, fake: FakeKds, tmp_path: Path) -> None:
    """From any source and of any date, if it is genuine. A list without revocations counts only while in force."""
    for kind in SERIAL:
        data = crl(kind, days) if form == "DER" else pem(crl(kind, days))
        endorser: Endorser = Nobody()
        table = b""
        if source == "directory":
            certs = tmp_path / kind
            certs.mkdir()
            (certs / "crl.der").write_bytes(data)
            endorser = Directory.read(certs, Nobody())
        elif source == "service":
            fake.answers[CRL] = data
            endorser = service(fake, tmp_path / kind)
        elif source == "cache":
            endorser = service(fake, tmp_path / kind, offline=True)
            endorser.cache.keep("vcek-Genoa.crl", data)
        else:
            chain = {VCEK_GUID: GENOA.certificate, ASK_GUID: GENOA.ask, ARK_GUID: GENOA.ark}
            table = _table_of({**{guid: der(one) for guid, one in chain.items()}, CRL_GUID: data})
        wanted = REFUSED if SERIAL[kind] else ACCEPTED if days == "in force" else UNDECIDED
        assert reason(outcome(endorser, demanded=True, table=table)) == wanted
        # Not demanded, only a revocation is of consequence.
        assert reason(outcome(endorser, table=table)) == (REFUSED if SERIAL[kind] else ACCEPTED)


def test_a_forged_list_is_ignored(tmp_path: Path) -> None:
    """Control for the test above: neither the date nor the format makes a list genuine."""
    other = Hierarchy(keys="-other").crl([GENOA.ask.serial_number])
    (tmp_path / "a.crl").write_bytes(other)
    (tmp_path / "b.pem").write_bytes(pem(other))
    assert reason(outcome(Directory.read(tmp_path, Nobody()))) == ACCEPTED
    assert reason(outcome(Directory.read(tmp_path, Nobody()), demanded=True)) == UNDECIDED


def test_an_older_list_does_not_replace_a_newer_one(fake: FakeKds, tmp_path: Path) -> None:
    """A mirror sends a list from before the revocation that is still in force."""
    fake.answers[CRL] = GENOA.crl([GENOA.ask.serial_number], days=(-1, 30))
    assert reason(outcome(service(fake, tmp_path))) == REFUSED
    fake.answers[CRL] = GENOA.crl(days=(-5, 30))
    path = tmp_path / "kds" / "vcek-Genoa.crl"
    kept = path.read_bytes()
    os.utime(path, (0, 0))  # so the service is asked again
    assert reason(outcome(service(fake, tmp_path))) == REFUSED and path.read_bytes() == kept
    # Control: a newer one does.
    fake.answers[CRL] = GENOA.crl(days=(0, 30))
    os.utime(path, (0, 0))
    assert reason(outcome(service(fake, tmp_path))) == ACCEPTED and path.read_bytes() != kept


def test_a_valid_list_in_the_directory_saves_a_request(fake: FakeKds, tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    certs.mkdir()
    (certs / "list").write_bytes(crl("good"))
    one = Directory.read(certs, service(fake, tmp_path))
    assert reason(outcome(one, demanded=True)) == ACCEPTED and fake.asked == []
    # One that is not in force does not save it, and the message names both lists.
    (certs / "list").write_bytes(crl("good", "old"))
    one = Directory.read(certs, service(fake, tmp_path))
    assert reason(outcome(one, demanded=True)) == ACCEPTED and fake.asked == [CRL]
    fake.answers[CRL] = 404
    found = outcome(Directory.read(certs, service(fake, tmp_path / "fresh")), demanded=True)
    assert reason(found) == UNDECIDED
    assert f"{certs}: a revocation list: in force from" in found.message and "answers 404" in found.message
    (certs / "list").write_bytes(Hierarchy(keys="-other").crl())
    found = outcome(Directory.read(certs, service(fake, tmp_path / "fresh")), demanded=True)
    assert "its signature is not the ARK's" in found.message
    (certs / "list").unlink()
    found = outcome(Directory.read(certs, service(fake, tmp_path / "fresh")), demanded=True)
    assert f"{certs} has no revocation list" in found.message


def test_lists_are_read_and_wrong_ones_refused() -> None:
    good = crl("good")
    for data in (good, pem(good), b"text before\n" + pem(good)):
        assert read_crl(data, GENOA.ark).next_update_utc
    for wrong in (pem(good)[:-20], pem(good) * 2, pem(good).replace(b"X509 CRL", b"CERTIFICATE"), b"", good[:-1]):
        with pytest.raises(CrlError):
            read_crl(wrong, GENOA.ark)
    with pytest.raises(CrlError, match="in force from"):
        load_crl(good, GENOA.ark, NOW + timedelta(days=31))


# What nobody demands must not cost waiting.


@pytest.mark.parametrize("status", [500, 503, 429, 404])
def test_an_optional_list_is_asked_for_once(status: int, fake: FakeKds, tmp_path: Path) -> None:
    fake.answers[CRL] = status
    slept: list[float] = []
    said: list[str] = []
    one = service(fake, tmp_path, sleep=slept.append, say=said.append)
    found = outcome(one)
    assert reason(found) == ACCEPTED and fake.asked == [CRL] and slept == []
    (check,) = (check for check in found.checks if check.name == "revocation")
    assert f"answers {status}" in check.reason and any("revocation list" in line for line in said)
    # Remembered in this process, and with a new memory by the cache, as another process has it.
    assert reason(outcome(service(fake, tmp_path))) == ACCEPTED and fake.asked == [CRL]
    kds_cache._failed.clear()
    found = outcome(service(fake, tmp_path))
    (check,) = (check for check in found.checks if check.name == "revocation")
    assert fake.asked == [CRL] and "not asked again" in check.reason
    # Control: another mirror is asked, and later this one too.
    with serving(FakeKds.of(GENOA)) as other:
        outcome(service(other, tmp_path / "fresh"))
        outcome(Kds(GENOA.root, Cache(tmp_path / "kds"), other.url))
        assert other.asked == [CRL, CRL]
    (tmp_path / "kds" / "vcek-Genoa.crl").unlink()
    os.utime(tmp_path / "kds" / "vcek-Genoa.crl.failed", (0, 0))
    kds_cache._failed.clear()
    outcome(service(fake, tmp_path))
    assert fake.asked == [CRL, CRL]


def test_without_a_writable_cache_a_failed_request_is_remembered_in_the_process(
    fake: FakeKds, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.answers[CRL] = 500
    nowhere = Cache(Path("/dev/null/kds"))
    for _ in range(2):
        found = outcome(Kds(GENOA.root, nowhere, fake.url))
        assert reason(found) == ACCEPTED and fake.asked == [CRL]
    (check,) = (check for check in found.checks if check.name == "revocation")
    assert "not asked again for 15 minutes after a failure" in check.reason
    # Control: it is forgotten after a while.
    monkeypatch.setattr(kds_cache, "FORGET", 0.0)
    outcome(Kds(GENOA.root, nowhere, fake.url))
    assert fake.asked == [CRL, CRL]


def test_the_cache_directory_follows_xdg_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kds_cache.default_directory() == tmp_path / "xdg" / "openend2e-sevsnp" / "kds"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert kds_cache.default_directory() == tmp_path / ".cache" / "openend2e-sevsnp" / "kds"


def test_a_demanded_list_is_requested_until_the_patience_ends(fake: FakeKds, tmp_path: Path) -> None:
    fake.answers[CRL] = 503
    assert reason(outcome(service(fake, tmp_path))) == ACCEPTED  # remembered as failed
    slept: list[float] = []
    one = service(fake, tmp_path, sleep=slept.append, limits=Limits(request=NET, patience=20.0))
    assert reason(outcome(one, demanded=True)) == UNDECIDED
    assert 10.0 < sum(slept) <= 20.0
    fake.answers[CRL] = crl("good")
    assert reason(outcome(one, demanded=True)) == ACCEPTED


def test_the_limits_of_an_optional_list() -> None:
    assert Limits().short() == (OPTIONAL, 0.0, None)
    assert Limits(request=1.0, whole=9.0).short() == (1.0, 0.0, 9.0)
    assert Limits().request > OPTIONAL


def test_a_cached_list_is_used_while_the_service_is_down(fake: FakeKds, tmp_path: Path) -> None:
    assert reason(outcome(service(fake, tmp_path), demanded=True)) == ACCEPTED
    fake.answers[CRL] = 500
    os.utime(tmp_path / "kds" / "vcek-Genoa.crl", (0, 0))
    for demanded in (False, True):
        one = service(fake, tmp_path, sleep=lambda _: None)
        assert reason(outcome(one, demanded=demanded)) == ACCEPTED
        # Once after the failed request, and once while that is remembered.
        for _ in range(2):
            lists = one.revocation_lists("Genoa", "VCEK", GENOA.ark, NOW, demanded)
            assert (len(lists.found), lists.problem) == (1, "")
    del fake.answers[CRL]  # the service is not asked for certificates here
    (tmp_path / "kds" / "vcek-Genoa.crl").unlink()
    nothing = service(fake, tmp_path, sleep=lambda _: None).revocation_lists("Genoa", "VCEK", GENOA.ark, NOW, False)
    assert nothing.found == () and nothing.problem


def test_a_served_list_that_is_not_in_force_is_a_problem_and_is_remembered(fake: FakeKds, tmp_path: Path) -> None:
    fake.answers[CRL] = crl("good", "old")
    said = []
    for _ in range(2):
        lists = service(fake, tmp_path).revocation_lists("Genoa", "VCEK", GENOA.ark, NOW, False)
        said.append((len(lists.found), "a revocation list: " in lists.problem, len(fake.asked)))
    assert said == [(1, True, 1), (1, True, 1)]  # the second time the service is not asked


def test_the_time_limit_of_a_command(fake: FakeKds, tmp_path: Path) -> None:
    """``whole`` is for all requests together: a request that hangs uses all of it, and the next is not made."""
    hanging: list[str] = []

    def hang(handler: Any) -> None:
        hanging.append(handler.path)
        wait_until(lambda: released)

    released: list[bool] = []
    answer: Handler = hang
    fake.answers = dict.fromkeys(fake.answers, answer)
    try:
        one = service(fake, tmp_path, limits=Limits(request=NET, whole=1.0))
        found = appraise(GENOA.evidence([]), expected(platform="snp"), NOW, GENOA.root, one)
        assert found.decision == "undecided" and "no answer in" in found.message
        again = appraise(GENOA.evidence([]), expected(platform="snp"), NOW, GENOA.root, one)
        assert "time limit of 1 s for all requests is over" in again.message and len(hanging) == 1
    finally:
        released.append(True)


def test_waits_end_with_the_time_limit(fake: FakeKds, tmp_path: Path) -> None:
    fake.answers[CRL] = 503
    slept: list[float] = []
    one = service(fake, tmp_path, limits=Limits(request=NET, whole=NET), sleep=slept.append)
    outcome(one, demanded=True)
    assert len(slept) > 2  # control
    slept.clear()
    one = service(fake, tmp_path, limits=Limits(request=NET, whole=1.5), sleep=slept.append)
    assert "for all requests" in outcome(one, demanded=True).message and slept == []


def test_the_command_names_the_request_that_it_waits_for(fake: FakeKds, tmp_path: Path) -> None:
    (tmp_path / "report").write_bytes(GENOA.report())
    words = [sys.executable, "-m", "sevsnp.commands.inspect_report", "--input", f"{tmp_path}/report", "--kds", fake.url]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
    for more, code in ((["--timeout", "9"], 3), (["--timeout", "0"], 64), (["--timeout", "nan"], 64)):
        done = subprocess.run([*words, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=NET,
                              check=False)  # fmt: skip
        assert done.returncode == code, done.stderr
        assert (f"asking {fake.url} for Genoa's ASK and ARK" in done.stderr) is (code == 3)
