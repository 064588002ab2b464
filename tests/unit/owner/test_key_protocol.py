# SPDX-License-Identifier: Apache-2.0
"""The key protocol under attack, with the guest in a process of its own: replayed, altered and doubled messages.

test_key_release.py tests who gets the key, test_key_messages.py the contents of the messages.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sevsnp.attestation.appraisal import Refused
from sevsnp.errors import UserError
from sevsnp.keys.pairs import ensure_keys
from sevsnp.keys.paths import Keys
from sevsnp.owner.key_release import Opened, owner_context
from tests.support.key_guest import HOST_KEY, der
from tests.support.key_wire import KEY, Alter, GuestProcess, flip, guest_process, release, wire
from tests.support.waiting import NET


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return ensure_keys(tmp_path_factory.mktemp("keys") / "owner")


@pytest.fixture
def guest(keys: Keys, tmp_path: Path) -> Iterator[GuestProcess]:
    with guest_process(der(keys.owner_certificate), tmp_path) as running:
        yield running


@pytest.fixture
def owner(keys: Keys) -> ssl.SSLContext:
    return owner_context(keys.owner_certificate, keys.owner_private)


def test_the_guest_side_needs_only_its_own_modules(guest: GuestProcess, owner: ssl.SSLContext) -> None:
    """Control for all tests below."""
    assert release(guest.port, owner) == Opened(4, (HOST_KEY,))
    assert guest.taken == [(KEY, 3)] and guest.end() == ""


def test_only_one_of_many_concurrent_owners_is_served(guest: GuestProcess, owner: ssl.SSLContext) -> None:
    gate = threading.Barrier(8)
    ends: list[object] = []

    def one() -> None:
        gate.wait()
        try:
            ends.append(release(guest.port, owner))
        except UserError as error:
            ends.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    assert len(ends) == 8 and sum(isinstance(end, Opened) for end in ends) == 1
    assert guest.taken == [(KEY, 3)] and guest.end() == ""


def lengths(guest: GuestProcess, owner: ssl.SSLContext) -> tuple[int, int]:
    """How many bytes an undisturbed release has on the wire, up and down."""
    seen = {"up": 0, "down": 0}

    def count(name: str) -> Alter:
        def alter(at: int, data: bytes) -> bytes:
            seen[name] = at + len(data)
            return data

        return alter

    with wire(guest.port, count("up"), count("down")) as port:
        assert release(port, owner).generation == 4
    return seen["up"], seen["down"]


@pytest.mark.parametrize("steps", [6, pytest.param(120, marks=pytest.mark.full)])
def test_a_flipped_bit_on_the_wire_never_gives_another_key(
    keys: Keys, owner: ssl.SSLContext, tmp_path: Path, steps: int
) -> None:
    """In either direction and at any place: the guest gets exactly the owner's message, or none."""
    with guest_process(der(keys.owner_certificate), tmp_path / "whole") as guest:
        totals = lengths(guest, owner)  # and the control: through the same relay, it works
    nothing = 0
    for direction, total in enumerate(totals):
        for step in range(steps):
            alters: list[Alter] = [lambda at, data: data] * 2
            alters[direction] = flip(total * step // steps + 5)
            with guest_process(der(keys.owner_certificate), tmp_path / f"{direction}-{step}") as guest:
                with wire(guest.port, *alters) as port, contextlib.suppress(UserError, Refused):
                    release(port, owner)
                assert guest.received in ([], [(KEY, 3)])
                nothing += not guest.received
    assert nothing > steps


def test_a_replayed_conversation_gives_no_key(keys: Keys, owner: ssl.SSLContext, tmp_path: Path) -> None:
    """All messages of the owner, sent again at the next boot of the same guest."""
    said = bytearray()

    def record(at: int, data: bytes) -> bytes:
        said.extend(data)
        return data

    with guest_process(der(keys.owner_certificate), tmp_path / "first") as guest:
        with wire(guest.port, record) as port:
            release(port, owner)
        assert guest.taken == [(KEY, 3)]
        assert KEY not in said
    with guest_process(der(keys.owner_certificate), tmp_path / "second") as guest:
        with socket.create_connection(("127.0.0.1", guest.port), NET) as client:
            client.sendall(said)
            with contextlib.suppress(OSError):
                while client.recv(4096):
                    pass
        assert guest.waiting
        release(guest.port, owner)
        assert guest.taken == [(KEY, 3)]


def test_a_doubled_record_gives_the_key_at_most_once(guest: GuestProcess, owner: ssl.SSLContext) -> None:
    """Each message of the owner is repeated by the network: the guest accepts the key once at most."""
    twice = wire(guest.port, lambda at, data: data + data if data[:1] == b"\x17" else data)
    with twice as port, contextlib.suppress(UserError, Refused):
        release(port, owner)
    assert guest.received in ([], [(KEY, 3)])
    guest.end()


# The guest's clock, which is the host's.


def passing_owner(directory: Path) -> Keys:
    """An owner whose certificate is of today, as most are."""
    directory.mkdir()
    key, name = Ed25519PrivateKey.generate(), x509.Name([])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now - timedelta(days=1), now + timedelta(days=1))
    made = Keys.of(directory)
    made.owner_certificate.write_bytes(builder.sign(key, None).public_bytes(Encoding.PEM))
    made.owner_private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


def clock(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp())


@pytest.mark.parametrize("year", [1970, 2000, 2099, 9999])
def test_the_key_arrives_whatever_the_clock_of_the_guest(
    keys: Keys, owner: ssl.SSLContext, tmp_path: Path, year: int
) -> None:
    """OpenSSL checks the owner's certificate at that time."""
    with guest_process(der(keys.owner_certificate), tmp_path, clock=clock(year)) as guest:
        assert release(guest.port, owner).generation == 4
        assert guest.taken == [(KEY, 3)]
        # A core dump of it would have been made before, and would not with the key in it.
        assert guest.dumpable == [1, 0]


def test_control_a_certificate_with_a_short_validity_depends_on_the_clock(tmp_path: Path) -> None:
    """Control: the clock of the test above decides the check."""
    today = passing_owner(tmp_path / "owner")
    context = owner_context(today.owner_certificate, today.owner_private)
    for year in (2000, 2099):
        with guest_process(der(today.owner_certificate), tmp_path / str(year), clock=clock(year)) as guest:
            with pytest.raises(UserError):
                release(guest.port, context)
            assert guest.waiting
    with guest_process(der(today.owner_certificate), tmp_path / "now") as guest:
        release(guest.port, context)
        assert guest.taken == [(KEY, 3)]
