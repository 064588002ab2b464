# SPDX-License-Identifier: Apache-2.0
"""Answers of a guest as an attacker on the network could send them: malformed, too long or slow ones are refused."""

import base64
import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevsnp.errors import UserError
from sevsnp.owner import client
from sevsnp.owner.client import MAX_ANSWER, NONCE_SIZE, REQUEST, ask, parse_answer
from tests.support.texts import UNICODE
from tests.support.waiting import NET, Clock


def key(number: int) -> str:
    """A host key as the guest sends it; nothing here asks whether it is a point on the curve."""
    return f"ssh-ed25519 {base64.b64encode(_PREFIX + bytes([number]) * 32).decode()}"


_PREFIX = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"
KEY = key(7)
GOOD: dict[str, Any] = {
    "report": base64.b64encode(b"report").decode(),
    "certificates": base64.b64encode(b"table").decode(),
    "host_keys": [KEY],
}
NONCE = bytes(range(NONCE_SIZE))


def parse(document: object) -> client.GuestAnswer:
    return parse_answer(json.dumps(document).encode(), "there:1")


def test_a_good_answer() -> None:
    answer = parse(GOOD)
    assert (answer.report, answer.certificates, answer.host_keys) == (b"report", b"table", (KEY,))
    assert answer.host_key_blobs() == [_PREFIX + bytes([7]) * 32]
    assert parse({**GOOD, "certificates": None}).certificates == b""
    assert len(parse({**GOOD, "host_keys": [key(n) for n in range(8)]}).host_keys) == 8


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key not in keys}


MALFORMED: dict[str, tuple[object, str]] = {
    "list": ([GOOD], "found list, expected a JSON object"),
    "text": ("x", "found str, expected a JSON object"),
    "null": (None, "found NoneType, expected a JSON object"),
    "no report": (without("report"), "report: found 'None', expected base64"),
    "report null": ({**GOOD, "report": None}, "report: found 'None', expected base64"),
    "report number": ({**GOOD, "report": 7}, "report: found '7', expected base64"),
    "report not base64": ({**GOOD, "report": "a b c"}, "report: found 'a b c', expected base64"),
    "report padding": ({**GOOD, "report": "abc"}, "report: found 'abc', expected base64"),
    "report not ASCII": ({**GOOD, "report": "ä" * 4}, "report: found 'ääää', expected base64"),
    "report URL alphabet": ({**GOOD, "report": "__--"}, "report: found '__--', expected base64"),
    "certificates number": ({**GOOD, "certificates": 7}, "certificates: found '7', expected base64"),
    "no keys": (without("host_keys"), "host_keys: found 'None', expected 1 to 8 keys"),
    "empty keys": ({**GOOD, "host_keys": []}, "host_keys: found '[]', expected 1 to 8 keys"),
    "many keys": ({**GOOD, "host_keys": [key(n) for n in range(9)]}, "expected 1 to 8 keys"),
    "a key twice": ({**GOOD, "host_keys": [KEY, KEY]}, "found a key twice"),
    "keys text": ({**GOOD, "host_keys": KEY}, "expected 1 to 8 keys"),
    "keys object": ({**GOOD, "host_keys": {KEY: 1}}, "expected 1 to 8 keys"),
    "key number": ({**GOOD, "host_keys": [7]}, "found '7', expected an ssh-ed25519 public key"),
    "another kind": ({**GOOD, "host_keys": ["ssh-rsa AAAA"]}, "expected an ssh-ed25519 public key"),
    "short key": ({**GOOD, "host_keys": [KEY[:-1]]}, "expected an ssh-ed25519 public key"),
    "long key": ({**GOOD, "host_keys": [KEY + "A"]}, "expected an ssh-ed25519 public key"),
    # What would add a line, a host or an option to known_hosts.
    "key with a line": ({**GOOD, "host_keys": [f"{KEY}\n* {KEY}"]}, "expected an ssh-ed25519 public key"),
    "key with a newline": ({**GOOD, "host_keys": [f"{KEY}\n"]}, "expected an ssh-ed25519 public key"),
    "key with a comment": ({**GOOD, "host_keys": [f"{KEY} x"]}, "expected an ssh-ed25519 public key"),
    "key with a marker": ({**GOOD, "host_keys": [f"@cert-authority * {KEY}"]}, "expected an ssh-ed25519 public key"),
    "error": ({"error": "no evidence here"}, "the guest gave no evidence: no evidence here"),
    "error of another type": ({"error": [1]}, "the guest gave no evidence: [1]"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_documents(name: str) -> None:
    document, words = MALFORMED[name]
    with pytest.raises(UserError) as caught:
        parse(document)
    assert caught.value.message.startswith("there:1: ") and words in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 50_000, b"1" * 10_000, b"{} {}", b"\0" * 64],
    ids=["empty", "cut", "no UTF-8", "deep lists", "deep objects", "long number", "two", "zeros"],
)
def test_an_answer_that_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match=f"there:1: found {len(data)} bytes that are not JSON"):
        parse_answer(data, "there:1")


_values = st.recursive(
    st.none() | st.text(UNICODE) | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*GOOD, "error"]), inner),
)


@given(st.binary(max_size=200) | _values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused_with_a_user_error(data: bytes) -> None:
    with pytest.raises(UserError):
        parse_answer(data, "there:1")


@contextlib.contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
    thread.join(NET)


def test_the_request_is_sent_and_the_answer_received() -> None:
    seen = bytearray()

    def answer(connection: socket.socket) -> None:
        while len(seen) < len(REQUEST) + NONCE_SIZE:
            seen.extend(connection.recv(4096))
        connection.sendall(json.dumps(GOOD).encode())

    with server(answer) as port:
        assert ask("127.0.0.1", port, NONCE).report == b"report"
    assert bytes(seen) == REQUEST + NONCE


def test_the_client_disconnects_from_a_silent_guest() -> None:
    ends: queue.Queue[bytes] = queue.Queue()

    def silent(connection: socket.socket) -> None:
        connection.settimeout(NET)
        connection.recv(len(REQUEST) + NONCE_SIZE, socket.MSG_WAITALL)
        ends.put(connection.recv(1))

    with server(silent) as port:
        with pytest.raises(UserError, match=r"no answer: .*timed out"):
            ask("127.0.0.1", port, NONCE, timeout=0.3)
        assert ends.get(timeout=NET) == b"", "who asked hung up first"


LIMIT = 40.0


@pytest.mark.parametrize("pace", [6.0, 9.0])
def test_the_whole_answer_has_one_time_limit(monkeypatch: pytest.MonkeyPatch, pace: float) -> None:
    """Five pieces, each within a limit for a single wait; a limit of 40 seconds allows 30 in all and refuses 45."""
    clock = Clock()
    monkeypatch.setattr(client, "time", clock)
    document = json.dumps(GOOD).encode()

    def trickle(connection: socket.socket) -> None:
        connection.recv(len(REQUEST) + NONCE_SIZE, socket.MSG_WAITALL)
        for place in range(5):
            clock.advance(pace)
            connection.sendall(document[place : place + 1] if place < 4 else document[4:])

    with server(trickle) as port:
        if pace * 5 < LIMIT:
            assert ask("127.0.0.1", port, NONCE, timeout=LIMIT).report == b"report"
        else:
            with pytest.raises(UserError, match=r"no answer: no whole answer in time"):
                ask("127.0.0.1", port, NONCE, timeout=LIMIT)


@pytest.mark.parametrize("surplus", [0, 1])
def test_an_answer_has_a_largest_size(surplus: int) -> None:
    document = json.dumps(GOOD).encode()
    data = document + b" " * (MAX_ANSWER - len(document) + surplus)

    def answer(connection: socket.socket) -> None:
        connection.recv(len(REQUEST) + NONCE_SIZE, socket.MSG_WAITALL)
        connection.sendall(data)

    with server(answer) as port:
        if surplus:
            with pytest.raises(UserError, match=f"found more than {MAX_ANSWER} bytes"):
                ask("127.0.0.1", port, NONCE)
        else:
            assert ask("127.0.0.1", port, NONCE).report == b"report"


def test_a_closed_port_is_an_error_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UserError, match=rf"^127\.0\.0\.1:{port}: no answer: ") as caught:
        ask("127.0.0.1", port, NONCE)
    assert "check that the guest runs" in caught.value.hint


@pytest.mark.parametrize("text", ["\u001b[2J\u001b]0;title\u0007", "line\nanother", "\u202egnp.exe"])
def test_no_control_characters_reach_the_terminal(text: str) -> None:
    for document in (
        {"error": text},
        {**GOOD, "host_keys": [text]},
        {**GOOD, "report": text},
    ):
        with pytest.raises(UserError) as caught:
            parse(document)
        assert caught.value.message.isprintable(), document
