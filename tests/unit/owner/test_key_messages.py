# SPDX-License-Identifier: Apache-2.0
"""The messages of the key protocol: every bit of the owner's messages, and all messages of a hostile guest."""

import base64
import contextlib
import hashlib
import json
import queue
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from sevsnp.attestation.appraisal import Refused
from sevsnp.attestation.report_data import luks_report_data, report_data
from sevsnp.errors import UserError
from sevsnp.keys.pairs import ensure_keys
from sevsnp.keys.paths import Keys
from sevsnp.owner import key_release
from sevsnp.owner.client import MAX_ANSWER
from sevsnp.owner.key_release import REQUEST, owner_context
from tests.support.key_guest import HOST_KEY, agent, der, evidence_for, guest_module
from tests.support.key_wire import HEADER, KEY, accept, release
from tests.support.waiting import NET, Clock


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return ensure_keys(tmp_path_factory.mktemp("keys") / "owner")


class Certified:
    """The guest's end of a connection, for its certificate alone."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate

    def version(self) -> str:
        return "TLSv1.3"

    def getpeercert(self, binary_form: bool) -> bytes:
        return self._certificate


@pytest.mark.parametrize("damage", [(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"), (b"\x30", b"\x31")])
def test_a_certificate_that_cannot_be_read_is_an_error_of_one_line(keys: Keys, damage: tuple[bytes, bytes]) -> None:
    good = der(keys.owner_certificate)
    x509.load_der_x509_certificate(good)  # control
    certificate = good.replace(*damage, 1)
    assert certificate != good
    with pytest.raises(UserError, match="guest: the guest's certificate cannot be read"):
        key_release.request_evidence(Certified(certificate), HEADER, "guest")  # type: ignore[arg-type]


@pytest.fixture
def owner(keys: Keys) -> ssl.SSLContext:
    return owner_context(keys.owner_certificate, keys.owner_private)


# The messages, as the guest reads them.


def served(messages: bytes) -> tuple[list[tuple[bytes, int]], list[bytes], BaseException | None]:
    """What the guest makes of an owner's bytes: keys it took, REPORT_DATA it asked for, how it ended."""
    ours, its = socket.socketpair()
    keys: list[tuple[bytes, int]] = []
    asked: list[bytes] = []

    def report(data: bytes) -> dict[str, object]:
        asked.append(data)
        return {"report": "", "certificates": ""}

    def unlock(key: bytearray, generation: int) -> dict[str, object]:
        keys.append((bytes(key), generation))
        return {}

    ours.sendall(messages)
    ours.shutdown(socket.SHUT_WR)
    try:
        with ours, its:
            agent.serve_owner(its, bytes(32), HEADER, report, unlock)
    except BaseException as error:
        return keys, asked, error
    return keys, asked, None


NONCE = bytes(range(32))
WHOLE = REQUEST + NONCE + struct.pack(">I32sQ", 40 + len(KEY), HEADER, 3) + KEY
_LENGTH_AT = len(REQUEST) + 32
# Where the owner's messages have which field.
FIELDS = {
    "request": (0, len(REQUEST)),
    "nonce": (len(REQUEST), _LENGTH_AT),
    "length": (_LENGTH_AT, _LENGTH_AT + 4),
    "header": (_LENGTH_AT + 4, _LENGTH_AT + 36),
    "generation": (_LENGTH_AT + 36, _LENGTH_AT + 44),
    "key": (_LENGTH_AT + 44, len(WHOLE)),
}


@pytest.mark.parametrize("name", FIELDS)
def test_messages_with_any_flipped_bit_have_the_expected_effect(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The effect without TLS. A nonce or a key may be any bytes: a changed one gives another report or another key."""
    assert served(WHOLE) == ([(KEY, 3)], [luks_report_data(NONCE, bytes(32), HEADER)], None)
    start, end = FIELDS[name]
    for bit in range(8 * start, 8 * end):
        altered = bytearray(WHOLE)
        altered[bit // 8] ^= 1 << bit % 8
        keys, asked, ended = served(bytes(altered))
        if name == "request":
            assert not asked and not keys and "another protocol" in str(ended)
        elif name == "nonce":
            assert asked == [luks_report_data(bytes(altered[start:end]), bytes(32), HEADER)] and keys
        elif name == "length" and int.from_bytes(altered[start:end], "big") > 40 + len(KEY):
            assert not keys and ended is not None
        elif name == "length":
            # A shorter key is one that opens nothing; what is not a key's length is none.
            shorter = bytes(altered[_LENGTH_AT + 44 : end + int.from_bytes(altered[start:end], "big")])
            assert keys in ([], [(shorter, 3)])
        elif name == "header":
            assert not keys and "another volume" in str(ended)
        elif name == "generation":
            assert keys == [(KEY, int.from_bytes(altered[start:end], "big"))]
        else:
            assert keys == [(bytes(altered[start:end]), 3)] and keys[0][0] != KEY


# Guests of the host's.


@contextlib.contextmanager
def false_guest(keys: Keys, directory: Path, talk: Callable[[ssl.SSLSocket, bytes, bytes], object]) -> Iterator[int]:
    """``talk`` has the connection with the owner, the nonce, and the digest of this guest's own TLS key."""
    certificate, key = agent.make_certificate(str(directory))
    context = agent.server_context(certificate, key, der(keys.owner_certificate))

    def serve() -> None:
        # An owner who refuses goes away.
        with contextlib.suppress(OSError, guest_module("linux").Stop):
            client, _ = listener.accept()
            client.settimeout(NET)
            with client, context.wrap_socket(client, server_side=True) as connection:
                request = bytes(agent.receive(connection, len(REQUEST) + 32, NET))
                talk(connection, request[len(REQUEST) :], agent.key_digest(certificate))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.close()
        thread.join(NET)
        assert not thread.is_alive()


OTHER = hashlib.sha256(b"another").digest()
SSH_LABEL, LUKS_LABEL = "openend2e-sevsnp ssh host keys v1", "openend2e-sevsnp luks key v1"
BOUND: dict[str, Callable[[bytes, bytes], bytes]] = {
    "another nonce": lambda nonce, key: luks_report_data(OTHER, key, HEADER),
    "one bit of the nonce": lambda nonce, key: luks_report_data(bytes([nonce[0] ^ 1]) + nonce[1:], key, HEADER),
    "another guest's connection": lambda nonce, key: luks_report_data(nonce, OTHER, HEADER),
    "another volume": lambda nonce, key: luks_report_data(nonce, key, OTHER),
    "in another order": lambda nonce, key: luks_report_data(key, nonce, HEADER),
    "header and key exchanged": lambda nonce, key: luks_report_data(nonce, HEADER, key),
    "the other workflow's label": lambda nonce, key: report_data(SSH_LABEL, [nonce, key, HEADER]),
    "in one piece": lambda nonce, key: report_data(LUKS_LABEL, [nonce + key + HEADER]),
    "no framing": lambda nonce, key: hashlib.sha512(LUKS_LABEL.encode() + b"\0" + nonce + key + HEADER).digest(),
    "the nonce alone": lambda nonce, key: nonce.ljust(64, b"\0"),
    "nothing": lambda nonce, key: bytes(64),
}


@pytest.mark.parametrize("name", ["as it should be", *BOUND])
def test_genuine_evidence_for_something_else_is_refused(
    keys: Keys, owner: ssl.SSLContext, tmp_path: Path, name: str
) -> None:
    got: list[bytes] = []

    def talk(connection: ssl.SSLSocket, nonce: bytes, key: bytes) -> None:
        bound = BOUND[name](nonce, key) if name in BOUND else luks_report_data(nonce, key, HEADER)
        agent.send(connection, evidence_for(bound))
        got.append(connection.recv(8192))
        agent.send(connection, {"generation": 4, "host_keys": [HOST_KEY]})

    with false_guest(keys, tmp_path / "1", talk) as port:
        if name in BOUND:
            with pytest.raises(Refused) as refused:
                release(port, owner)
            assert refused.value.reason == "report-data"
        else:
            release(port, owner)
    assert (KEY in b"".join(got)) == (name not in BOUND)
    # Control: an owner who verifies nothing hands it over.
    with false_guest(keys, tmp_path / "2", talk) as port:
        release(port, owner, appraise=accept)
    assert KEY in got[-1]


# One byte of each field of a report (AMD 56860, ATTESTATION_REPORT), and of both halves of its signature.
REPORT_FIELDS = (
    0x00, 0x04, 0x08, 0x10, 0x20, 0x30, 0x34, 0x38, 0x40, 0x48, 0x50, 0x6F, 0x90, 0x9A, 0xBF, 0xC0, 0xE0, 0x110, 0x140,
    0x160, 0x180, 0x188, 0x1A0, 0x1E0, 0x1E8, 0x1E9, 0x1EA, 0x1EC, 0x1F0, 0x29F, 0x2A0, 0x2CF, 0x2E8, 0x317,
)  # fmt: skip


def test_a_report_with_a_flipped_bit_in_any_field_gets_no_key(
    keys: Keys, owner: ssl.SSLContext, tmp_path: Path
) -> None:
    """A guest of the host has the owner's connection and alters genuine evidence for it, field by field."""
    for place in (None, *REPORT_FIELDS):
        got: list[bytes] = []

        def talk(
            connection: ssl.SSLSocket, nonce: bytes, key: bytes, place: int | None = place, got: list[bytes] = got
        ) -> None:
            evidence = evidence_for(luks_report_data(nonce, key, HEADER))
            if place is not None:
                report = bytearray(base64.b64decode(str(evidence["report"])))
                report[place] ^= 1
                evidence["report"] = base64.b64encode(report).decode()
            agent.send(connection, evidence)
            got.append(connection.recv(8192))
            agent.send(connection, {"generation": 4, "host_keys": [HOST_KEY]})

        with false_guest(keys, tmp_path, talk) as port:
            if place is None:
                release(port, owner)  # control
            else:
                with pytest.raises(Refused):
                    release(port, owner)
        assert (KEY in b"".join(got)) == (place is None), place


def _frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


HOSTILE = {
    "four gigabytes": struct.pack(">I", 0xFFFFFFFF) + bytes(100_000),
    "one byte more than is taken": struct.pack(">I", MAX_ANSWER + 1),
    "an empty frame": _frame(b""),
    "half a length": b"\0\0",
    "half a frame": _frame(b'{"report": ""}')[:-3],
    "not JSON": _frame(b"report"),
    "not UTF-8": _frame(b'{"report": "\xff\xfe"}'),
    "a list": _frame(b"[]"),
    "a number": _frame(b"1"),
    "deep": _frame(b"[" * 60_000),
    "deep, in a field": _frame(b'{"report": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001),
    "a number of 60,000 digits": _frame(b'{"report": ' + b"9" * 60_000 + b"}"),
    "not a number": _frame(b'{"report": NaN}'),
    "no report": _frame(b"{}"),
    "a report that is a list": _frame(b'{"report": [], "certificates": ""}'),
    "a report that is no base64": _frame(b'{"report": "*", "certificates": ""}'),
    "a short report": _frame(b'{"report": "AAAA", "certificates": ""}'),
    "a report of zeros": _frame(json.dumps({"report": base64.b64encode(bytes(1184)).decode()}).encode()),
    "an error with escapes": _frame(json.dumps({"error": "\x1b[2J\x07 run: rm -rf"}).encode()),
    "an error that is a list": _frame(b'{"error": [[1]]}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_guest_gets_a_clear_refusal(keys: Keys, owner: ssl.SSLContext, tmp_path: Path, name: str) -> None:
    """Whatever the guest sends, the owner's program ends with its own error and has sent no key."""
    got: list[bytes] = []

    def talk(connection: ssl.SSLSocket, nonce: bytes, key: bytes) -> None:
        connection.sendall(HOSTILE[name])
        if name.startswith("half"):
            connection.unwrap()
        else:
            got.append(connection.recv(8192))

    with false_guest(keys, tmp_path, talk) as port, pytest.raises((UserError, Refused)) as error:
        release(port, owner)
    assert KEY not in b"".join(got)
    assert str(error.value).isprintable() or "\n  " in str(error.value)
    assert "\x1b" not in str(error.value)


def test_the_owner_disconnects_from_a_guest_that_sends_byte_by_byte(
    keys: Keys, owner: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is within a time limit, the whole answer is not: the owner disconnects while the guest still sends."""
    clock = Clock()
    monkeypatch.setattr(key_release, "time", clock)
    ends: queue.Queue[bytes] = queue.Queue()

    def talk(connection: ssl.SSLSocket, nonce: bytes, key: bytes) -> None:
        connection.sendall(struct.pack(">I", 60_000))
        for _ in range(10):
            clock.advance(key_release.EVIDENCE_SECONDS / 9)
            connection.sendall(b" ")
        connection.settimeout(key_release.EVIDENCE_SECONDS / 2)  # less than an owner would wait who counts anew
        try:
            ends.put(connection.recv(1))
        except TimeoutError:
            ends.put(b"waited for")
        except OSError:
            ends.put(b"")

    with false_guest(keys, tmp_path, talk) as port, pytest.raises(UserError, match="no whole answer in time"):
        release(port, owner)
    assert ends.get(timeout=NET) == b""
