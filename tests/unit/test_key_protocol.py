"""The key protocol under attack, with the guest in a process of its own: what is replayed, altered, too much or late.

test_key_release.py has who gets the key and who does not; here is what happens between the two ends.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import queue
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sevsnp import key_release
from sevsnp.attestation.appraisal import Evidence, Refused
from sevsnp.attestation.client import MAX_ANSWER
from sevsnp.attestation.report_data import luks_report_data, report_data
from sevsnp.emulation.verify import verify_emulated
from sevsnp.errors import UserError
from sevsnp.key_paths import Keys
from sevsnp.key_release import REQUEST, Opened, Secret, owner_context
from sevsnp.keys import ensure_keys
from sevsnp.owner import Verdict
from tests.unit.evidence import ROOT, expected, root
from tests.unit.key_guest import HOST_KEY, agent, der, evidence_for, guest_module

HEADER = hashlib.sha256(b"this volume's header").digest()
KEY = b"the key \0 of this disk"
SCRIPT = Path(__file__).with_name("key_guest_process.py")
PLACES = (ROOT / "initramfs", ROOT / "sevsnp" / "attestation")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return ensure_keys(tmp_path_factory.mktemp("keys") / "owner")


@dataclasses.dataclass
class GuestProcess:
    """What the guest in its process said, until it ended."""

    process: "subprocess.Popen[str]"
    port: int = 0
    received: list[tuple[bytes, int]] = dataclasses.field(default_factory=list)
    _ended: "queue.Queue[str]" = dataclasses.field(default_factory=queue.Queue)

    def end(self, seconds: float = 30) -> str:
        """Why it ended, empty where all went well."""
        return self._ended.get(timeout=seconds)

    @property
    def waiting(self) -> bool:
        return self._ended.empty() and not self.received and self.process.poll() is None

    def follow(self) -> None:
        assert self.process.stdout and self.process.stdin
        for line in self.process.stdout:
            if not line.startswith("{"):
                continue  # what the agent says on its console
            said = json.loads(line)
            if "report_data" in said:
                self.process.stdin.write(json.dumps(evidence_for(bytes.fromhex(said["report_data"]))) + "\n")
                self.process.stdin.flush()
            elif "received" in said:
                self.received.append((bytes.fromhex(said["received"]), said["generation"]))
            elif "ended" in said:
                self._ended.put(said["ended"])


@contextlib.contextmanager
def guest_process(owner: bytes, directory: Path, *, clock: int | None = None) -> Iterator[GuestProcess]:
    words: list[str | Path] = [sys.executable, "-I", "-S", "-B", SCRIPT, *PLACES, directory / "guest"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={}) as process:
        assert process.stdin and process.stdout
        guest = GuestProcess(process)
        told = {
            "owner": base64.b64encode(owner).decode(),
            "header": HEADER.hex(),
            "clock": clock,
            "host_keys": [HOST_KEY],
        }
        try:
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
            guest.port = json.loads(process.stdout.readline())["port"]
            threading.Thread(target=guest.follow, daemon=True).start()
            yield guest
        finally:
            process.kill()


@pytest.fixture
def guest(keys: Keys, tmp_path: Path) -> Iterator[GuestProcess]:
    with guest_process(der(keys.owner_certificate), tmp_path) as running:
        yield running


def appraise(evidence: Evidence, data: bytes) -> Verdict:
    return verify_emulated(evidence, expected(report_data=data), datetime.now(UTC), root())


def accept(evidence: Evidence, data: bytes) -> Verdict:
    """A control's verifier, which verifies nothing."""
    return evidence  # type: ignore[return-value]


def release(port: int, context: ssl.SSLContext, appraise: Callable[..., Verdict] = appraise) -> Opened:
    with key_release.connect("127.0.0.1", port, context) as connection:
        return key_release.release(
            connection, HEADER, "there", appraise=appraise, decide=lambda _: Secret(HEADER, 3, KEY)
        )[1]


@pytest.fixture
def owner(keys: Keys) -> ssl.SSLContext:
    return owner_context(keys.owner_certificate, keys.owner_private)


def test_the_guest_s_end_needs_nothing_but_its_own_modules(guest: GuestProcess, owner: ssl.SSLContext) -> None:
    """Control for all that follows."""
    assert release(guest.port, owner) == Opened(4, (HOST_KEY,))
    assert guest.received == [(KEY, 3)] and guest.end() == ""


def test_of_many_owners_at_once_one_is_served(guest: GuestProcess, owner: ssl.SSLContext) -> None:
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
        thread.join(60)
    assert len(ends) == 8 and sum(isinstance(end, Opened) for end in ends) == 1
    assert guest.received == [(KEY, 3)] and guest.end() == ""


# The wire.


Alter = Callable[[int, bytes], bytes]


@contextlib.contextmanager
def wire(port: int, up: Alter, down: Alter = lambda at, data: data) -> Iterator[int]:
    """A relay for one connection; ``up`` and ``down`` get each piece with its place in its direction's stream."""

    def pump(source: socket.socket, target: socket.socket, alter: Alter) -> None:
        at = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(alter(at, data))
                at += len(data)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            with client, socket.create_connection(("127.0.0.1", port), 10) as server:
                back = threading.Thread(target=pump, args=(server, client, down), daemon=True)
                back.start()
                pump(client, server, up)
                back.join(30)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)


def flip(place: int) -> Alter:
    def alter(at: int, data: bytes) -> bytes:
        if not at <= place < at + len(data):
            return data
        altered = bytearray(data)
        altered[place - at] ^= 0x10
        return bytes(altered)

    return alter


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
    """Wherever in either direction: what the guest gets is the owner's very message, or nothing."""
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


def test_a_recorded_conversation_played_again(keys: Keys, owner: ssl.SSLContext, tmp_path: Path) -> None:
    """All that the owner once sent, to the next boot of the same guest."""
    said = bytearray()

    def record(at: int, data: bytes) -> bytes:
        said.extend(data)
        return data

    with guest_process(der(keys.owner_certificate), tmp_path / "first") as guest:
        with wire(guest.port, record) as port:
            release(port, owner)
        assert guest.received == [(KEY, 3)]
        assert KEY not in said
    with guest_process(der(keys.owner_certificate), tmp_path / "second") as guest:
        with socket.create_connection(("127.0.0.1", guest.port), 10) as client:
            client.sendall(said)
            with contextlib.suppress(OSError):
                while client.recv(4096):
                    pass
        assert guest.waiting
        release(guest.port, owner)
        assert guest.received == [(KEY, 3)]


def test_every_record_sent_twice(guest: GuestProcess, owner: ssl.SSLContext) -> None:
    """The owner's messages, each repeated by the network: the key is taken once at most."""
    twice = wire(guest.port, lambda at, data: data + data if data[:1] == b"\x17" else data)
    with twice as port, contextlib.suppress(UserError, Refused):
        release(port, owner)
    assert guest.received in ([], [(KEY, 3)])
    guest.end()


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
def test_every_flipped_bit_of_every_field(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What would come of it were it not for TLS. A nonce or a key is any bytes: another report, another key."""
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
            client.settimeout(20)
            with client, context.wrap_socket(client, server_side=True) as connection:
                request = bytes(agent.receive(connection, len(REQUEST) + 32, 10))
                talk(connection, request[len(REQUEST) :], agent.key_digest(certificate))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.close()
        thread.join(30)
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


def test_a_flipped_bit_in_any_field_of_the_report(keys: Keys, owner: ssl.SSLContext, tmp_path: Path) -> None:
    """The host's own guest has the owner's connection and alters genuine evidence for it, field by field."""
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
    """Whatever it says, the owner's program ends with an error of its own, and has sent no key."""
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


def test_a_guest_that_trickles_without_end_is_left(
    keys: Keys, owner: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, the whole does not."""
    monkeypatch.setattr(key_release, "EVIDENCE_SECONDS", 1.5)

    def talk(connection: ssl.SSLSocket, nonce: bytes, key: bytes) -> None:
        connection.sendall(struct.pack(">I", 60_000))
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.1)

    started = time.monotonic()
    with false_guest(keys, tmp_path, talk) as port, pytest.raises(UserError, match="it took too long"):
        release(port, owner)
    assert time.monotonic() - started < 8


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
def test_any_clock_of_the_guest_will_do(keys: Keys, owner: ssl.SSLContext, tmp_path: Path, year: int) -> None:
    """OpenSSL's own check of the owner's certificate, at that time."""
    with guest_process(der(keys.owner_certificate), tmp_path, clock=clock(year)) as guest:
        assert release(guest.port, owner).generation == 4
        assert guest.received == [(KEY, 3)]


def test_a_certificate_of_today_depends_on_the_clock(tmp_path: Path) -> None:
    """Control: the clock of the one before is the one that decides."""
    today = passing_owner(tmp_path / "owner")
    context = owner_context(today.owner_certificate, today.owner_private)
    for year in (2000, 2099):
        with guest_process(der(today.owner_certificate), tmp_path / str(year), clock=clock(year)) as guest:
            with pytest.raises(UserError):
                release(guest.port, context)
            assert guest.waiting
    with guest_process(der(today.owner_certificate), tmp_path / "now") as guest:
        release(guest.port, context)
        assert guest.received == [(KEY, 3)]
