# SPDX-License-Identifier: Apache-2.0
"""The release of a disk key between real programs: who gets it, who does not, and how the guest treats strangers."""

import contextlib
import hashlib
import json
import os
import queue
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation.appraisal import Refused
from sevsnp.attestation.verifier import verify_report
from sevsnp.emulation.verify import verify_emulated
from sevsnp.errors import UserError
from sevsnp.keys.pairs import ensure_keys
from sevsnp.keys.paths import Keys
from sevsnp.owner import key_release
from sevsnp.owner.kept import Conversation
from sevsnp.owner.key_release import REQUEST, Opened, Secret, is_waiting, owner_context
from sevsnp.owner.login import Verdict
from tests.support.evidence import expected, root
from tests.support.key_guest import (
    HOST_KEY,
    KeyGuest,
    agent,
    anonymous_context,
    der,
    evidence_for,
    guest_module,
    hung_up,
    key_guest,
)
from tests.support.waiting import NET

HEADER = hashlib.sha256(b"this volume's header").digest()
OTHER_HEADER = hashlib.sha256(b"another volume's header").digest()
KEY = b"a key\nwith \0 and \xff"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return ensure_keys(tmp_path_factory.mktemp("keys") / "owner")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return ensure_keys(tmp_path_factory.mktemp("keys") / "stranger")


@pytest.fixture
def guest(keys: Keys, tmp_path: Path) -> Iterator[KeyGuest]:
    with key_guest(keys, tmp_path, HEADER) as running:
        yield running


def appraise(talk: Conversation) -> Verdict:
    return verify_emulated(talk.evidence, expected(report_data=talk.report_data), datetime.now(UTC), root())


@contextlib.contextmanager
def connected(port: int, keys: Keys) -> Iterator[ssl.SSLSocket]:
    context = owner_context(keys.owner_certificate, keys.owner_private)
    with key_release.connect("127.0.0.1", port, context) as connection:
        yield connection


def release(port: int, keys: Keys, header: bytes = HEADER, generation: int = 3, appraise: Any = appraise) -> Opened:
    """A whole release as attest_luks does it, without the rules."""
    with connected(port, keys) as connection:
        return key_release.release(
            connection, header, "there", appraise=appraise, decide=lambda _: Secret(header, generation, KEY)
        )[2]


def test_the_key_of_the_owner_arrives_unchanged(guest: KeyGuest, keys: Keys) -> None:
    """Control for all tests below."""
    assert release(guest.port, keys) == Opened(4, (HOST_KEY,))
    assert guest.received == [(KEY, 3)]
    assert guest.end() is None


def test_the_longest_key_and_one_byte(keys: Keys, tmp_path: Path) -> None:
    for number, key in enumerate((b"\n", os.urandom(4096))):
        with key_guest(keys, tmp_path / str(number), HEADER) as guest, connected(guest.port, keys) as connection:
            key_release.request_evidence(connection, HEADER, "there")
            key_release.send_key(connection, Secret(HEADER, 0, key), "there")
            assert guest.received == [(key, 0)]


@pytest.mark.parametrize("key", [b"", bytes(4097)])
def test_a_key_of_an_impossible_length_is_not_sent(guest: KeyGuest, keys: Keys, key: bytes) -> None:
    with connected(guest.port, keys) as connection:
        key_release.request_evidence(connection, HEADER, "there")
        with pytest.raises(UserError, match="expected 1 to 4096"):
            key_release.send_key(connection, Secret(HEADER, 0, key), "there")
    assert guest.received == []


def strangers_leave(port: int, stranger: Keys, signed: tuple[Path, Path]) -> None:
    """Everybody but the owner, in every way that there is to knock."""
    for certificate, key in ((stranger.owner_certificate, stranger.owner_private), signed):
        with pytest.raises(UserError, match=r"closed the connection|no answer"), contextlib.ExitStack() as stack:
            context = owner_context(certificate, key)
            connection = stack.enter_context(key_release.connect("127.0.0.1", port, context))
            key_release.request_evidence(connection, HEADER, "there")
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), NET) as plain:  # noqa: SIM117
        with anonymous_context().wrap_socket(plain) as connection:
            connection.sendall(REQUEST + bytes(32))
            if not connection.recv(1):
                raise ConnectionResetError
    old = anonymous_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", port), NET) as plain:
        old.wrap_socket(plain)
    for data in (REQUEST + bytes(32), b"\x16\x03\x01\xff\xff" + os.urandom(70_000), b""):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), NET) as plain:
            plain.sendall(data)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(4096):
                pass


def openssl(*words: str | Path) -> None:
    environment = {**os.environ, "OPENSSL_CONF": os.devnull}
    subprocess.run(["openssl", *words], env=environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def signed(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate that the owner's key signed, for another key: under the anchor, and yet not the owner."""
    directory = tmp_path_factory.mktemp("signed")
    request, certificate, key = directory / "request", directory / "certificate.pem", directory / "key.pem"
    openssl("req", "-new", "-newkey", "ed25519", "-nodes", "-subj", "/CN=o2", "-keyout", key, "-out", request)
    anchor = ("-CA", keys.owner_certificate, "-CAkey", keys.owner_private, "-set_serial", "7")
    openssl("x509", "-req", "-days", "1", "-in", request, "-out", certificate, *anchor)
    return certificate, key


def test_the_guest_ignores_strangers(guest: KeyGuest, keys: Keys, stranger: Keys, signed: tuple[Path, Path]) -> None:
    strangers_leave(guest.port, stranger, signed)
    assert is_waiting("127.0.0.1", guest.port, NET) and guest.waiting
    assert release(guest.port, keys).generation == 4


def test_a_certificate_accepted_by_tls_is_compared_with_the_owner(keys: Keys, stranger: Keys, tmp_path: Path) -> None:
    """The comparison alone, behind a wrong trust anchor. Control: it compares with the wrong certificate, too."""
    certificate, key = agent.make_certificate(str(tmp_path))
    context = agent.server_context(certificate, key, der(stranger.owner_certificate))
    for whole, gets_in in ((der(keys.owner_certificate), False), (der(stranger.owner_certificate), True)):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            found: queue.Queue[ssl.SSLSocket] = queue.Queue()
            port = listener.getsockname()[1]

            arguments = (found, listener, context, whole)
            threading.Thread(target=lambda q, *a: q.put(agent.accept_owner(*a)), args=arguments, daemon=True).start()
            with connected(port, stranger) as connection:
                if gets_in:
                    found.get(timeout=NET).close()
                with contextlib.suppress(ssl.SSLEOFError):
                    assert connection.recv(1) == b""
            assert found.empty()


def test_silent_clients_do_not_keep_the_owner_out(guest: KeyGuest, keys: Keys) -> None:
    """All places but one are used, some by clients that send byte by byte; the owner is served nevertheless."""
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", guest.port), NET))
            for _ in range(agent.MAX_CLIENTS - 1)
        ]
        for one in held[::2]:
            one.sendall(b"\x16\x03\x01")
        assert release(guest.port, keys).generation == 4
    assert guest.end() is None


def test_a_silent_client_is_dropped_in_time(guest: KeyGuest, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "SECONDS", 1.0)
    monkeypatch.setattr(key_release, "CONNECT_SECONDS", NET)
    served = threading.Event()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", guest.port), NET)) for _ in range(40)]

        def trickle() -> None:
            with contextlib.suppress(OSError):
                for byte in b"\x16\x03\x01\x01\x00" + bytes(250):
                    held[0].sendall(bytes([byte]))
                    if served.wait(0.1):
                        return

        threading.Thread(target=trickle, daemon=True).start()
        # More than there are places, and before the owner, who has one: the guest hangs up on the silent, in turns.
        assert release(guest.port, keys).generation == 4
        served.set()
        assert sum(map(hung_up, held[1:])) >= len(held) - agent.MAX_CLIENTS


def test_one_owner_is_served_at_a_time(guest: KeyGuest, keys: Keys) -> None:
    with connected(guest.port, keys) as first:
        key_release.request_evidence(first, HEADER, "there")
        with pytest.raises(UserError, match=r"closed the connection|no answer"), contextlib.ExitStack() as stack:
            second = stack.enter_context(connected(guest.port, keys))
            key_release.request_evidence(second, HEADER, "there")
        key_release.send_key(first, Secret(HEADER, 0, KEY), "there")
    assert guest.received == [(KEY, 0)]


def test_another_volume_s_guest_gets_nothing(guest: KeyGuest, keys: Keys) -> None:
    with pytest.raises(Refused) as refused:
        release(guest.port, keys, header=OTHER_HEADER)
    assert refused.value.reason == "report-data"
    assert guest.received == []
    assert "the owner closed the connection" in str(guest.end())


def test_control_without_the_header_in_the_evidence_it_would_get_the_key(keys: Keys, tmp_path: Path) -> None:
    """Control for the test above: the header digest, and the guest's comparison of it, make the difference."""
    with key_guest(keys, tmp_path, HEADER) as guest, pytest.raises(UserError, match="the owner's key is for another"):
        release(guest.port, keys, header=OTHER_HEADER, appraise=lambda talk: talk)
    assert guest.received == []
    with key_guest(keys, tmp_path / "other", OTHER_HEADER) as guest:
        release(guest.port, keys, header=OTHER_HEADER)
    assert guest.received == [(KEY, 3)]


@contextlib.contextmanager
def man_in_the_middle(port: int, keys: Keys, directory: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Has the genuine guest's evidence for the owner's own nonce, and a certificate of its own. It would need the
    owner's key to talk to the guest; here it is given one, so that only the binding of the connection is left."""
    certificate, key = agent.make_certificate(str(directory / "middle"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError, struct.error):
            plain, _ = listener.accept()
            client = context.wrap_socket(plain, server_side=True)
            request = client.recv(len(REQUEST) + 32)
            with connected(port, keys) as server:
                server.sendall(request)
                (size,) = struct.unpack(">I", server.recv(4))
                body = bytes(agent.receive(server, size, 10))
                client.sendall(struct.pack(">I", size) + body)
                seen.append(client.recv(8192))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        thread.join(NET)
        listener.close()


def test_a_relay_of_genuine_evidence_is_refused(guest: KeyGuest, keys: Keys, tmp_path: Path) -> None:
    with man_in_the_middle(guest.port, keys, tmp_path) as (port, seen), pytest.raises(Refused) as refused:
        release(port, keys)
    assert refused.value.reason == "report-data"
    assert seen in ([], [b""])


def test_control_without_the_connection_in_the_evidence_the_relay_has_the_key(
    guest: KeyGuest, keys: Keys, tmp_path: Path
) -> None:
    """Control for the test above."""
    with man_in_the_middle(guest.port, keys, tmp_path) as (port, seen), pytest.raises(UserError):
        release(port, keys, appraise=lambda talk: talk)
    assert KEY in seen[0]


def test_production_refuses_emulated_evidence(guest: KeyGuest, keys: Keys) -> None:
    with pytest.raises(Refused) as refused:
        release(
            guest.port,
            keys,
            appraise=lambda talk: verify_report(talk.evidence, expected(platform="snp"), talk.at),
        )
    assert refused.value.reason == "unknown-root"
    assert guest.received == []


MESSAGES = {
    "another protocol": [b"openend2e-sevsnp/1 ssh \n" + bytes(32)],
    "nothing": [],
    "half a nonce": [REQUEST + bytes(16)],
    "too long": [REQUEST + bytes(32), struct.pack(">I", 1 << 31)],
    "too short": [REQUEST + bytes(32), struct.pack(">I", 40) + HEADER + bytes(8)],
    "one more than the longest": [REQUEST + bytes(32), struct.pack(">I", 40 + 4097) + HEADER + bytes(8 + 4097)],
    "cut off": [REQUEST + bytes(32), struct.pack(">I", 50) + HEADER + bytes(8)],
    "another header": [REQUEST + bytes(32), struct.pack(">I", 41) + OTHER_HEADER + bytes(9)],
    "one bit of the header": [
        REQUEST + bytes(32),
        struct.pack(">I", 41) + bytes([HEADER[0] ^ 1]) + HEADER[1:] + bytes(9),
    ],
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_message_of_the_owner_ends_the_guest(guest: KeyGuest, keys: Keys, name: str) -> None:
    with connected(guest.port, keys) as connection:
        for message in MESSAGES[name]:
            connection.sendall(message)
        with contextlib.suppress(OSError):
            connection.unwrap()
    ended = guest.end()
    assert ended is not None and str(ended), name
    assert guest.received == []


def test_control_the_right_messages_are_accepted(guest: KeyGuest, keys: Keys) -> None:
    with connected(guest.port, keys) as connection:
        connection.sendall(REQUEST + bytes(32))
        connection.sendall(struct.pack(">I", 41) + HEADER + bytes(8) + b"k")
        key_release._answer(connection, 10, "there")  # the evidence
        assert key_release._answer(connection, 10, "there")["generation"] == 1
    assert guest.end() is None


def test_an_error_in_the_guest_reaches_the_owner(keys: Keys, tmp_path: Path) -> None:
    linux = guest_module("linux")

    def unlock(key: bytes, generation: int) -> dict[str, Any]:
        raise linux.Stop("no key for this\n\x1b[2J disk")

    with (
        key_guest(keys, tmp_path, HEADER, unlock=unlock) as guest,
        pytest.raises(UserError, match=r"refused the key release, and powers off: no key for this\?\?\[2J disk"),
    ):
        release(guest.port, keys)
    assert isinstance(guest.end(), linux.Stop)


def test_a_guest_without_evidence(keys: Keys, tmp_path: Path) -> None:
    def none(report_data: bytes) -> dict[str, object]:
        raise ValueError("this is not an SNP guest")

    with (
        key_guest(keys, tmp_path, HEADER, report=none) as guest,
        pytest.raises(UserError, match="this is not an SNP guest"),
    ):
        release(guest.port, keys)
    assert guest.received == []


ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "no generation": ({"host_keys": [HOST_KEY]}, "generation: found None"),
    "the same generation": ({"generation": 3, "host_keys": [HOST_KEY]}, "expected a number above 3"),
    "a huge generation": ({"generation": 1 << 63, "host_keys": [HOST_KEY]}, "expected a number above 3"),
    "a boolean": ({"generation": True, "host_keys": [HOST_KEY]}, "generation: found True"),
    "no host key": ({"generation": 4}, "host_keys: found 'None'"),
    "a line more": ({"generation": 4, "host_keys": [HOST_KEY + "\n* " + HOST_KEY]}, "expected an ssh-ed25519"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_checked(keys: Keys, tmp_path: Path, name: str) -> None:
    document, words = ANSWERS[name]
    with key_guest(keys, tmp_path, HEADER, unlock=lambda *_: document) as guest, pytest.raises(UserError) as error:
        release(guest.port, keys)
    assert words in error.value.message


def test_a_replayed_report_is_refused(keys: Keys, tmp_path: Path) -> None:
    """Evidence of the genuine guest for an earlier nonce of the same owner."""
    kept: list[dict[str, object]] = []

    def first_forever(report_data: bytes) -> dict[str, object]:
        kept.append(evidence_for(report_data))
        return kept[0]

    with key_guest(keys, tmp_path / "1", HEADER, report=first_forever) as guest:
        assert release(guest.port, keys).generation == 4  # control: fresh, it is accepted
    with key_guest(keys, tmp_path / "2", HEADER, report=first_forever) as guest, pytest.raises(Refused) as refused:
        release(guest.port, keys)
    assert refused.value.reason == "report-data" and guest.received == []


def test_a_closed_port_is_an_error(keys: Keys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert not is_waiting("127.0.0.1", port)
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: no answer"), connected(port, keys):
        pass


def test_the_two_ends_agree_on_their_constants() -> None:
    assert agent.REQUEST == REQUEST and agent.MAX_KEY == key_release.MAX_KEY
    assert json.dumps(key_release.MAX_GENERATION) == str(guest_module("luks_root").MAX_GENERATION)
