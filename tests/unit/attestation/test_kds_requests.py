# SPDX-License-Identifier: Apache-2.0
"""One request to the service: after which answers it is repeated, how often, and after which waits."""

import gzip
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from sevsnp.attestation.checklist import Unreachable
from sevsnp.attestation.kds_http import Client, Limits
from tests.support.fake_kds import FakeKds, serving
from tests.support.waiting import NET

PATH = "/vcek/v1/Genoa/crl"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKds]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(FakeKds({PATH: b"a list"})) as one:
        yield one


def ask(fake: FakeKds, patience: float = 60.0, size: int = 100) -> tuple[bytes | str, list[float], list[str]]:
    """The body or what went wrong, the waits, and what was said."""
    slept: list[float] = []
    said: list[str] = []
    try:
        found: bytes | str = Client(fake.url, slept.append, said.append).get(
            PATH, "a list", size, Limits(NET, patience)
        )
    except Unreachable as error:
        found = str(error)
    return found, slept, [line.replace(fake.url, "URL") for line in said]


@pytest.mark.parametrize("status", [201, 302, 400, 401, 403, 404, 405, 418, 501, 505])
def test_a_final_answer_is_not_asked_for_again(status: int, fake: FakeKds) -> None:
    fake.answers[PATH] = status
    known = ": it knows no such chip or TCB version" if status == 404 else ""
    assert ask(fake) == (f"answers {status}{known}", [], ["asking URL for a list"]) and len(fake.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_request_with_a_temporary_error_is_repeated(status: int, fake: FakeKds) -> None:
    """The service asks for 3 s each time. The waits grow up to 10 s and end when the patience is used up."""
    fake.answers[PATH] = status
    found, slept, said = ask(fake)
    assert (found, slept) == (f"answers {status} for more than 60 s", [3.0, 6.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    assert len(fake.asked) == len(slept) + 1 and said[1] == f"URL answers {status}: asking for a list again in 3 s"
    assert ask(fake, 9.0)[:2] == (f"answers {status}", [3.0, 6.0])  # exactly the patience
    assert ask(fake, 8.0)[:2] == (f"answers {status} for more than 8 s", [3.0])
    fake.asked.clear()
    assert ask(fake, 0.0)[:2] == (f"answers {status}", []) and len(fake.asked) == 1


@pytest.mark.parametrize(
    ("asked", "first"), [("", 2.0), ("nonsense", 2.0), ("-5", 2.0), ("0.5", 2.0), ("7", 7.0), ("99", 10.0)]
)
def test_how_long_the_service_asks_to_wait(asked: str, first: float, fake: FakeKds) -> None:
    def answer(handler: Any) -> None:
        fake.answers[PATH] = b"a list"  # before the client has the answer, after which it asks at once
        handler.send_response(429)
        handler.send_header("Retry-After", asked)
        handler.end_headers()

    fake.answers[PATH] = answer
    assert ask(fake)[:2] == (b"a list", [first])


def test_the_size_of_an_answer(fake: FakeKds) -> None:
    assert ask(fake, size=6)[0] == b"a list" and ask(fake, size=5)[0] == "more than 5 bytes"


@pytest.mark.parametrize(("content", "found"), [(b"a list", b"a list"), (bytes(64 << 20), "more than 100 bytes")])
def test_the_size_of_a_compressed_answer(content: bytes, found: bytes | str, fake: FakeKds) -> None:
    """The limit is for what becomes of it."""

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        handler.wfile.write(gzip.compress(content))

    fake.answers[PATH] = answer
    assert ask(fake)[0] == found


def test_a_service_that_is_not_there(fake: FakeKds) -> None:
    """Nothing is said about certificates (test_company_network.py has those that are not trusted)."""
    with socket.socket() as bound:  # nobody listens on it, and nobody else takes it
        bound.bind(("127.0.0.1", 0))
        fake.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert ask(fake)[0] == "ConnectionError"
