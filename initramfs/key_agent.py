# SPDX-License-Identifier: Apache-2.0
"""The key agent: a guest with an encrypted root waits for its key over TLS 1.3, and first sends evidence to the owner.

Both ends are authenticated. The client must have the owner's certificate, which is on the measured command line. The
guest makes its own certificate at each boot. REPORT_DATA binds the key of that certificate, the owner's nonce and the
digest of this volume's header. In order, after the handshake:

1. owner → guest: the line ``openend2e-sevsnp/1 luks`` and a nonce (32 bytes);
2. guest → owner: a frame, JSON with ``report`` and ``certificates`` in base64;
3. owner → guest: a frame, the header's SHA-256 (32 bytes), the last generation that the owner knows of (u64
   big-endian), and the key (1 to 4096 bytes);
4. guest → owner: a frame, JSON with ``generation`` and ``host_keys``, or with ``error``.

A frame is its length (u32 big-endian) and that many bytes. Any other client is disconnected and changes nothing. An
error with the owner ends the machine. Standard library only.
"""

import contextlib
import hashlib
import json
import os
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

import linux
from clients import serve_clients
from report_data import DIGEST_SIZE, NONCE_SIZE, luks_report_data

PORT = 8088
REQUEST = b"openend2e-sevsnp/1 luks\n"
MAX_KEY = 4096
# Time limit for a handshake, for each message from the owner except the key, and for the owner to take an answer.
SECONDS = 10.0
# Time limit for the key; the owner verifies the evidence before it sends the key.
KEY_SECONDS = 60.0
MAX_CLIENTS = 16
_ANSWER = struct.Struct(">I")
_HEAD = struct.Struct(f">{DIGEST_SIZE}sQ")
# DER of an Ed25519 SubjectPublicKeyInfo (RFC 8410 §4) before the key's 32 bytes.
_ED25519 = bytes.fromhex("302a300506032b6570032100")

Report = Callable[[bytes], "dict[str, object]"]
Unlock = Callable[["bytearray", int], "dict[str, object]"]


def make_certificate(directory: str) -> "tuple[str, str]":
    """Make a fresh Ed25519 key and its certificate in the private ``directory``; return the paths: certificate, key."""
    os.makedirs(directory, 0o700, exist_ok=True)
    certificate, key = f"{directory}/certificate.pem", f"{directory}/key.pem"
    linux.run(
        "/usr/bin/openssl",
        *("req", "-x509", "-newkey", "ed25519", "-noenc", "-batch"),
        *("-config", "/dev/null"),
        *("-subj", "/CN=guest"),
        *("-keyout", key),
        *("-out", certificate),
    )
    return certificate, key


def key_digest(certificate: str) -> bytes:
    """SHA-256 (32 bytes) of the DER SubjectPublicKeyInfo of an Ed25519 certificate in PEM that we made ourselves."""
    with open(certificate, encoding="ascii") as stream:
        der = ssl.PEM_cert_to_DER_cert(stream.read())
    start = der.index(_ED25519)
    return hashlib.sha256(der[start : start + len(_ED25519) + 32]).digest()


def server_context(certificate: str, key: str, owner: bytes) -> ssl.SSLContext:
    """A TLS 1.3 context that accepts only clients with a certificate under ``owner`` (DER), and resumes no session."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=owner)
    return context


def accept_owner(listener: socket.socket, context: ssl.SSLContext, owner: bytes) -> ssl.SSLSocket:
    """The first connection whose client has proven to be the owner. Other clients may connect at the same time."""
    found: queue.Queue[ssl.SSLSocket] = queue.Queue()
    claimed = threading.Lock()

    def one(client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # this includes ssl.SSLError
            client.settimeout(SECONDS)
            connection = context.wrap_socket(client, server_side=True)
            # TLS also accepts a certificate that the owner's key has signed; only the owner's own certificate counts.
            if connection.getpeercert(binary_form=True) == owner and claimed.acquire(blocking=False):
                found.put(connection)
            else:
                connection.close()

    def say(problem: str) -> None:
        print(f"init: key agent: {problem}", flush=True)

    threading.Thread(target=serve_clients, args=(listener, MAX_CLIENTS, one, say), daemon=True).start()
    return found.get()


def close(listener: socket.socket) -> None:
    """Close the port. A thread that waits in accept() would keep it open, so that no other program could have it."""
    with socket.socket(fileno=os.dup(listener.fileno())) as same:
        listener.close()  # first: the thread then ends without an error message
        same.shutdown(socket.SHUT_RDWR)


def serve_owner(connection: ssl.SSLSocket, key_digest: bytes, header: bytes, report: Report, unlock: Unlock) -> None:
    """Run the protocol with the owner, from the nonce to the answer.

    ``report`` returns evidence for REPORT_DATA (64 bytes). ``unlock`` opens the root with the key and the generation,
    and returns the answer. An error in either is sent to the owner and raised. Raises Stop if the owner disconnects.
    """
    linux.keep_from_dumps()
    try:
        request = bytes(receive(connection, len(REQUEST) + NONCE_SIZE, SECONDS))
        if not request.startswith(REQUEST):
            raise linux.Stop("the owner speaks another protocol")
        found = report(luks_report_data(request[len(REQUEST) :], key_digest, header))
        send(connection, {"report": found["report"], "certificates": found["certificates"]})
        (size,) = _ANSWER.unpack(receive(connection, _ANSWER.size, KEY_SECONDS))
        if not _HEAD.size < size <= _HEAD.size + MAX_KEY:
            raise linux.Stop(f"a message of {size} bytes, expected header digest, generation and key")
        body = receive(connection, size, SECONDS)
        digest, generation = _HEAD.unpack_from(body)
        key = body[_HEAD.size :]
        try:
            if digest != header:
                raise linux.Stop("the owner's key is for another volume")
            answer = unlock(key, generation)
        finally:
            key[:] = bytes(len(key))
            body[:] = bytes(len(body))
    except BaseException as error:
        finish(connection, {"error": linux.reason(error)})
        raise
    finish(connection, answer)


def receive(connection: socket.socket, size: int, seconds: float) -> bytearray:
    """Receive exactly ``size`` bytes within ``seconds`` in all. Raises Stop if time is up or the owner disconnects."""
    deadline = time.monotonic() + seconds
    data = bytearray(size)
    place = 0
    with memoryview(data) as view:
        while place < size:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                count = connection.recv_into(view[place:])
            except OSError as error:
                raise linux.Stop(f"the owner's connection: {error}") from None
            if not count:
                raise linux.Stop("the owner closed the connection")
            place += count
    return data


def send(connection: socket.socket, document: "dict[str, object]") -> None:
    """Send one frame with ``document`` as JSON."""
    body = json.dumps(document).encode()
    connection.settimeout(SECONDS)
    try:
        connection.sendall(_ANSWER.pack(len(body)) + body)
    except OSError as error:
        raise linux.Stop(f"the owner's connection: {error}") from None


def finish(connection: socket.socket, document: "dict[str, object]") -> None:
    """Send the last frame and wait until the owner closes the connection, which shows that the owner has the frame.

    A failure here changes nothing: the disk is already open, or the reason is on the console.
    """
    try:
        send(connection, document)
        connection.settimeout(SECONDS)
        connection.recv(1)
    except (OSError, linux.Stop) as error:
        print(f"init: key agent: {error}", flush=True)
    finally:
        connection.close()
