# SPDX-License-Identifier: Apache-2.0
"""The guest's agent: it answers a nonce with evidence, as long as the guest runs.

Each connection has one request: the line ``openend2e-sevsnp/1 ssh`` and a nonce of 32 bytes. The answer is a JSON
document with the attestation report, the certificate table and the SSH host keys. REPORT_DATA binds the keys and the
nonce. Then the connection ends. The agent needs only the standard library, and nothing from the guest's root file
system.
"""

import base64
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from clients import serve_clients
from get_report import get_report
from report_data import ssh_report_data

PORT = 8088
REQUEST = b"openend2e-sevsnp/1 ssh\n"
NONCE_SIZE = 32
# Time limit for a whole request, and for the client to take the answer. Then another client gets the place.
CLIENT_SECONDS = 10.0
MAX_CLIENTS = 16


def receive(client: socket.socket, size: int) -> bytes:
    """Receive ``size`` bytes, or fewer if the peer closes. Raises TimeoutError after the time limit for all of them."""
    deadline = time.monotonic() + CLIENT_SECONDS
    data = b""
    while len(data) < size:
        client.settimeout(max(deadline - time.monotonic(), 0.001))
        piece = client.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data


def evidence(nonce: bytes, host_keys: "list[str]", provider_lock: threading.Lock) -> "dict[str, object]":
    blobs = [base64.b64decode(key.split()[1]) for key in host_keys]
    with provider_lock:
        found = get_report(ssh_report_data(nonce, blobs))
    return {**found, "host_keys": [" ".join(key.split()[:2]) for key in host_keys]}


def answer(client: socket.socket, host_keys: "list[str]", provider_lock: threading.Lock) -> None:
    request = receive(client, len(REQUEST) + NONCE_SIZE)
    if len(request) != len(REQUEST) + NONCE_SIZE or not request.startswith(REQUEST):
        return
    try:
        document = evidence(request[len(REQUEST) :], host_keys, provider_lock)
    except Exception as error:
        document = {"error": f"{error}"}
    client.settimeout(CLIENT_SECONDS)
    client.sendall(json.dumps(document).encode())
    client.shutdown(socket.SHUT_WR)


def serve(host_keys: "list[str]", ready: "Callable[[], object]") -> None:
    """Answer requests without end. ``ready`` is called as soon as the port is open."""
    os.setsid()
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
        stream.write("-1000")
    listener = socket.create_server(("", PORT), backlog=MAX_CLIENTS)
    provider_lock = threading.Lock()
    ready()
    serve_clients(
        listener,
        MAX_CLIENTS,
        lambda client: answer(client, host_keys, provider_lock),
        lambda problem: print(f"agent: {problem}", file=sys.stderr),
    )
