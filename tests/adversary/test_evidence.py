# SPDX-License-Identifier: Apache-2.0
"""Wrong evidence: each kind is refused for its own reason. Control: genuine evidence of the same guest."""

import os
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation.appraisal import Evidence, Expected, Refused
from sevsnp.attestation.report_data import ssh_report_data
from sevsnp.emulation.psp import EmulatedPsp
from sevsnp.emulation.verify import EmulatedVerdict, verify_emulated
from sevsnp.owner.attestation import attest
from sevsnp.owner.client import NONCE_SIZE, REQUEST, GuestAnswer, ask, parse_answer
from sevsnp.vm_config.config import Reference, VmConfig
from tests.support.relay import listening, replay, rewrite
from tests.support.replacing import replaced_once
from tests.support.shared_guests import Attested, Running, refusal
from tests.support.waiting import NET

pytestmark = pytest.mark.boot


def attest_at(running: Running, port: int, config: VmConfig | None = None, root: Path | None = None) -> Any:
    return attest(config or running.config, "127.0.0.1", port, root or running.guest.root).verdict


def refused_for(reason: str, running: Running, port: int | None = None, **changes: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        attest_at(running, port or running.port, **changes)
    assert refused.value.reason == reason
    return refused.value


def with_reference(config: VmConfig, **changes: Any) -> VmConfig:
    reference: Reference = replace(config.require_reference(), **changes)
    return replace(config, reference=reference)


def raw_answer(port: int) -> bytes:
    """A genuine answer, for a nonce of one's own."""
    with socket.create_connection(("127.0.0.1", port), timeout=NET) as connection:
        connection.sendall(REQUEST + os.urandom(NONCE_SIZE))
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_fresh_nonce_is_accepted(guest: Attested) -> None:
    verdict = attest_at(guest.running, guest.running.port)
    assert isinstance(verdict, EmulatedVerdict)
    assert verdict.report.measurement == guest.running.config.require_reference().launch_digest


def test_a_report_for_another_nonce_is_refused(guest: Attested) -> None:
    recorded = raw_answer(guest.running.port)
    with listening(replay(recorded)) as port:
        refusal_ = refused_for("report-data", guest.running, port)
    # Nothing but its age is wrong with it.
    assert [check.name for check in refusal_.checks if check.outcome == "failed"] == ["report-data"]


def test_swapped_host_keys_are_refused(guest: Attested) -> None:
    key = guest.running.built.keys.user_public.read_text().split()[:2]

    def swap(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "host_keys": [" ".join(key)]}

    def add(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "host_keys": [*answer["host_keys"], " ".join(key)]}

    for change in (swap, add):
        with listening(rewrite(guest.running.port, change)) as port:
            refused_for("report-data", guest.running, port)
    with listening(rewrite(guest.running.port, lambda answer: answer)) as port:  # control: the relay itself is harmless
        assert attest_at(guest.running, port)


def test_another_measurement_is_refused(guest: Attested) -> None:
    digest = bytearray(guest.running.config.require_reference().launch_digest)
    digest[0] ^= 1
    other = with_reference(guest.running.config, launch_digest=bytes(digest))
    refused_for("measurement", guest.running, config=other)


def test_the_production_config_refuses_the_emulated_initramfs(guest: Attested) -> None:
    # Same disks and kernel; the emulated attester's layer and word make it another guest.
    production = guest.running.built.config("snp")
    as_emulated = replace(guest.running.config, reference=production.require_reference())
    refused_for("measurement", guest.running, config=as_emulated)


def test_another_root_is_refused(guest: Attested, tmp_path: Path) -> None:
    EmulatedPsp.create(tmp_path)
    refused_for("unknown-root", guest.running, root=tmp_path / "ark.pem")


def test_emulated_evidence_is_refused_by_the_production_verifier(guest: Attested) -> None:
    config = guest.running.config
    refused_for("unknown-root", guest.running, config=replace(config, launch=replace(config.launch, platform="snp")))


def test_a_debug_policy_is_refused(guest: Attested, tmp_path: Path) -> None:
    """The secure processor signs it for a guest whose memory the host may read."""
    config = guest.running.config
    psp, nonce = EmulatedPsp.create(tmp_path), os.urandom(NONCE_SIZE)
    data = ssh_report_data(nonce, [b"a host key"])
    measurement = config.require_reference().launch_digest

    def appraise(policy: int) -> EmulatedVerdict:
        launch = replace(config.launch, guest_policy=policy)
        evidence = Evidence(psp.report(data, launch=launch, measurement=measurement), psp.certificate_table())
        return verify_emulated(evidence, Expected.of(config, data), datetime.now(UTC), tmp_path / "ark.pem")

    assert appraise(config.launch.guest_policy)  # control
    with pytest.raises(Refused) as refused:
        appraise(config.launch.guest_policy | 1 << 19)
    assert refused.value.reason == "debug-policy"


def test_a_debug_policy_is_refused_even_when_the_vm_config_asks_for_it(guest: Attested, tmp_path: Path) -> None:
    config = guest.running.config
    launch = replace(config.launch, guest_policy=config.launch.guest_policy | 1 << 19)
    psp, data = EmulatedPsp.create(tmp_path), os.urandom(64)
    report = psp.report(data, launch=launch, measurement=config.require_reference().launch_digest)
    expected = Expected.of(replace(config, launch=launch), data)
    with pytest.raises(Refused) as refused:
        verify_emulated(Evidence(report, psp.certificate_table()), expected, datetime.now(UTC), tmp_path / "ark.pem")
    assert refused.value.reason == "debug-policy"


def test_a_guest_without_evidence_answers_with_the_reason(impostor: Running) -> None:
    """The guest of the production VM config runs emulated, and has no evidence. Control: the emulated VM config."""
    message = refusal(lambda: ask("127.0.0.1", impostor.port, os.urandom(NONCE_SIZE)), "the guest gave no evidence")
    assert "this is not an SNP guest" in message
    refusal(lambda: attest_at(impostor, impostor.port, root=Path("/nonexistent")), "the guest gave no evidence")


ANSWER = b'{"report": "AAAA", "certificates": "", "host_keys": ["ssh-ed25519 ' + b"A" * 68 + b'"]}'


def test_a_well_formed_answer_is_read() -> None:
    assert isinstance(parse_answer(ANSWER, "there"), GuestAnswer)  # control for the next test


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (ANSWER, b"", "not JSON"),
        (ANSWER, b"[" * 100_000, "not JSON"),
        (ANSWER, b"\xff", "not JSON"),
        (ANSWER, b"[]", "expected a JSON object"),
        (ANSWER, b'{"error": "\\u001b]0;evil\\u0007 no"}', "?]0;evil? no"),
        (b'"AAAA"', b'"A!"', "report"),
        (b'"AAAA"', b"null", "report"),
        (b'"certificates": ""', b'"certificates": 1', "certificates"),
        (b"ssh-ed25519", b"ssh-rsa", "host_keys"),
        (b'["ssh', b'["* ssh', "host_keys"),
        (b'"]}', b'\\ncert-authority"]}', "host_keys"),
        (b'"]}', b'\\n"]}', "host_keys"),
        (b'["', b'[null, "', "host_keys"),
        (b"]}", b"]}" + b"x", "not JSON"),
    ],
)
def test_a_malformed_answer_is_refused_by_name(old: bytes, new: bytes, words: str) -> None:
    answer = replaced_once(ANSWER, old, new)
    message = refusal(lambda: parse_answer(answer, "there:1"), "there:1", words)
    assert message.isprintable()


def test_no_host_keys_and_doubled_host_keys_are_refused(guest: Attested) -> None:
    def double(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "host_keys": answer["host_keys"] * 2}

    refusal(lambda: parse_answer(b'{"report": "", "certificates": "", "host_keys": []}', "there"), "host_keys")
    with listening(rewrite(guest.running.port, double)) as port:
        refusal(lambda: attest_at(guest.running, port), "host_keys: found a key twice")


def test_an_answer_without_end_is_cut_off(guest: Attested) -> None:
    def pour(client: socket.socket) -> None:
        while True:
            client.sendall(b" " * 65536)

    with listening(pour) as port:
        refusal(lambda: attest_at(guest.running, port), "more than")


def test_an_answer_that_is_too_slow_is_given_up(guest: Attested) -> None:
    def trickle(client: socket.socket) -> None:
        while not stop.wait(0.2):
            client.sendall(b" ")

    stop = threading.Event()
    with listening(trickle) as port:
        refusal(lambda: ask("127.0.0.1", port, os.urandom(NONCE_SIZE), timeout=2), "no answer")
    stop.set()
