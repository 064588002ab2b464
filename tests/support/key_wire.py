# SPDX-License-Identifier: Apache-2.0
"""For the attacks on the key protocol: a guest in a separate process, a relay, and the owner's end."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import queue
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from sevsnp.emulation.verify import verify_emulated
from sevsnp.owner import key_release
from sevsnp.owner.kept import Conversation
from sevsnp.owner.key_release import Opened, Secret
from sevsnp.owner.login import Verdict
from tests.support.evidence import ROOT, expected, root
from tests.support.key_guest import HOST_KEY, evidence_for
from tests.support.waiting import NET

HEADER = hashlib.sha256(b"this volume's header").digest()
KEY = b"the key \0 of this disk"
_SCRIPT = Path(__file__).with_name("key_guest_process.py")
_PLACES = (ROOT / "initramfs", ROOT / "sevsnp" / "attestation")


@dataclasses.dataclass
class GuestProcess:
    """The messages of the guest process until it ended."""

    process: "subprocess.Popen[str]"
    port: int = 0
    told: list[tuple[bytes, int]] = dataclasses.field(default_factory=list)
    # Whether the kernel would write a core dump of it: when it waits, and when it has the key.
    dumpable: list[int] = dataclasses.field(default_factory=list)
    _ended: "queue.Queue[str]" = dataclasses.field(default_factory=queue.Queue)

    def end(self, seconds: float = NET) -> str:
        """Why it ended; empty for success."""
        return self._ended.get(timeout=seconds)

    @property
    def taken(self) -> list[tuple[bytes, int]]:
        """The keys that it received; for a guest that ends."""
        self._ended.put(self.end())
        return self.told

    @property
    def received(self) -> list[tuple[bytes, int]]:
        """The keys that it has received so far; for a guest that may not end."""
        with contextlib.suppress(queue.Empty):
            self._ended.put(self.end(0.5))
        return self.told

    @property
    def waiting(self) -> bool:
        """Whether no owner has connected yet."""
        return not self.received and self._ended.empty() and self.process.poll() is None

    def _line(self) -> str:
        assert self.process.stdout
        try:
            return self.process.stdout.readline()
        except ValueError:  # closed at the end of the test
            return ""

    def follow(self) -> None:
        assert self.process.stdout and self.process.stdin
        for line in iter(self._line, ""):
            if not line.startswith("{"):
                continue  # the agent's console output
            said = json.loads(line)
            if "report_data" in said:
                self.process.stdin.write(json.dumps(evidence_for(bytes.fromhex(said["report_data"]))) + "\n")
                self.process.stdin.flush()
            elif "received" in said:
                self.told.append((bytes.fromhex(said["received"]), said["generation"]))
                self.dumpable.append(said["dumpable"])
            elif "ended" in said:
                self._ended.put(said["ended"])


@contextlib.contextmanager
def guest_process(owner: bytes, directory: Path, *, clock: int | None = None) -> Iterator[GuestProcess]:
    words: list[str | Path] = [sys.executable, "-I", "-S", "-B", _SCRIPT, *_PLACES, directory / "guest"]
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
            first = json.loads(process.stdout.readline())
            guest.port = first["port"]
            guest.dumpable.append(first["dumpable"])
            threading.Thread(target=guest.follow, daemon=True).start()
            yield guest
        finally:
            process.kill()


def appraise(talk: Conversation) -> Verdict:
    return verify_emulated(talk.evidence, expected(report_data=talk.report_data), datetime.now(UTC), root())


def accept(talk: Conversation) -> Verdict:
    """The verifier of a control; it verifies nothing."""
    return talk  # type: ignore[return-value]


def release(port: int, context: ssl.SSLContext, appraise: Callable[..., Verdict] = appraise) -> Opened:
    with key_release.connect("127.0.0.1", port, context) as connection:
        return key_release.release(
            connection, HEADER, "there", appraise=appraise, decide=lambda _: Secret(HEADER, 3, KEY)
        )[2]


Alter = Callable[[int, bytes], bytes]


@contextlib.contextmanager
def wire(port: int, up: Alter, down: Alter = lambda at, data: data) -> Iterator[int]:
    """A relay for one connection; ``up`` and ``down`` get each piece with its offset in its direction's stream."""

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
            with client, socket.create_connection(("127.0.0.1", port), NET) as server:
                back = threading.Thread(target=pump, args=(server, client, down), daemon=True)
                back.start()
                pump(client, server, up)
                back.join(NET)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(NET)


def flip(place: int) -> Alter:
    def alter(at: int, data: bytes) -> bytes:
        if not at <= place < at + len(data):
            return data
        altered = bytearray(data)
        altered[place - at] ^= 0x10
        return bytes(altered)

    return alter
