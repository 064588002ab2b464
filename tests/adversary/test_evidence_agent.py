# SPDX-License-Identifier: Apache-2.0
"""Clients of the guest's agent that misbehave: other clients still get their evidence."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime

import pytest

from sevsnp.attestation.appraisal import Evidence, Expected
from sevsnp.attestation.report_data import ssh_report_data
from sevsnp.emulation.verify import verify_emulated
from sevsnp.owner.attestation import attest
from sevsnp.owner.client import NONCE_SIZE, REQUEST, parse_answer
from tests.support.shared_guests import Attested, Running
from tests.support.waiting import NET

pytestmark = pytest.mark.boot

# What the agent serves at a time, and more than that.
AT_A_TIME = 16
CROWD = 20


def accepted(running: Running) -> None:
    """The guest's evidence for a fresh nonce is accepted, before :data:`NET` is over."""
    assert attest(running.config, "127.0.0.1", running.port, running.guest.root, timeout=NET)


def send(running: Running, data: bytes) -> bytes:
    """Send ``data`` to the agent and close this direction; what it answers."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=NET) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


def test_many_clients_at_once_get_evidence_for_their_own_nonce(guest: Attested) -> None:
    running = guest.running
    nonces = [os.urandom(NONCE_SIZE) for _ in range(AT_A_TIME)]
    with crowd(running, REQUEST, AT_A_TIME) as clients:
        # All are connected and have begun to ask; now all ask at once.
        for client, nonce in zip(clients, nonces, strict=True):
            client.sendall(nonce)
        for client, nonce in zip(clients, nonces, strict=True):
            client.settimeout(NET)
            answer = parse_answer(b"".join(iter(lambda: client.recv(65536), b"")), "guest")  # noqa: B023
            expected = Expected.of(running.config, ssh_report_data(nonce, answer.host_key_blobs()))
            evidence = Evidence(answer.report, answer.certificates)
            assert verify_emulated(evidence, expected, datetime.now(UTC), running.guest.root)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        REQUEST,
        REQUEST + bytes(NONCE_SIZE - 1),
        b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n" + bytes(64),
        REQUEST.replace(b"/1", b"/2") + bytes(NONCE_SIZE),
        REQUEST.upper() + bytes(NONCE_SIZE),
        bytes(len(REQUEST) + NONCE_SIZE),
        b"\xff" * (1 << 20),
    ],
    ids=["nothing", "no-nonce", "half-a-nonce", "http", "version", "case", "zeros", "megabyte"],
)
def test_garbage_gets_no_answer(guest: Attested, request_: bytes) -> None:
    assert send(guest.running, request_) == b""
    accepted(guest.running)


def test_a_request_has_an_answer(guest: Attested) -> None:
    """Control for the test above: a correct request, sent in the same way."""
    assert b'"report"' in send(guest.running, REQUEST + os.urandom(NONCE_SIZE))


@contextlib.contextmanager
def crowd(running: Running, data: bytes, size: int = CROWD) -> Iterator[list[socket.socket]]:
    """``size`` connections that have each sent ``data`` and stay open.

    Made one after the other: QEMU's user network has a queue of one connection, and what it drops comes late.
    """
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(size):
            time.sleep(0.05)
            client = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=NET))
            client.sendall(data)
            clients.append(client)
        yield clients


def test_slow_clients_do_not_block_other_clients(guest: Attested) -> None:
    with crowd(guest.running, REQUEST[:1]) as clients, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(accepted, guest.running)
        # At this pace they go on for longer than the one that asks has patience: it is served before they are through.
        request = REQUEST[1:] + bytes(NONCE_SIZE - 1)
        for byte in request:
            for client in clients:
                with contextlib.suppress(OSError):  # given up by the agent
                    client.sendall(bytes([byte]))
            if wait([asked], 1.5 * NET / len(request)).done:
                break
        else:
            pytest.fail("they were through first")
        asked.result()


def test_clients_that_do_not_read_do_not_block_other_clients(guest: Attested) -> None:
    with crowd(guest.running, REQUEST + os.urandom(NONCE_SIZE)):
        accepted(guest.running)
