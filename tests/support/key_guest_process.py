# SPDX-License-Identifier: Apache-2.0
"""The guest's end of a key release as a separate process, with only the initramfs's modules and the standard library.

    python -I -S -B key_guest_process.py INITRAMFS ATTESTATION DIRECTORY

It reads one line of JSON, ``{"owner": base64, "header": hex, "clock": seconds or null, "host_keys": [text]}``, and
writes lines of JSON: ``port`` and ``dumpable`` (whether the kernel would write a core dump of it) when it waits;
``report_data`` when it needs evidence (which it reads as a line of JSON); ``received``, ``generation`` and ``dumpable``
when it has the key; at last ``ended``, with the reason, or empty.
"""

import base64
import ctypes
import json
import os
import socket
import ssl
import sys
from typing import Any

sys.path.insert(0, sys.argv[1])
sys.path.insert(1, sys.argv[2])

import key_agent
import linux


def tell(**said: object) -> None:
    print(json.dumps(said), flush=True)


def set_clock(context: ssl.SSLContext, seconds: int) -> None:
    """Make OpenSSL verify certificates as of ``seconds`` since 1970, as if the clock said so.

    The time is a parameter of the context that the module ssl does not show; the context follows the object's header.
    """
    import _ssl

    library = ctypes.CDLL(_ssl.__file__)
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    library.SSL_CTX_get0_param.restype = ctypes.c_void_p
    library.SSL_CTX_get0_param.argtypes = [ctypes.c_void_p]
    library.X509_VERIFY_PARAM_set_time.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.X509_VERIFY_PARAM_set_time(library.SSL_CTX_get0_param(pointer), seconds)


def main() -> None:
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    owner = base64.b64decode(told["owner"])
    certificate, key = key_agent.make_certificate(sys.argv[3])
    context = key_agent.server_context(certificate, key, owner)
    if told["clock"] is not None:
        set_clock(context, told["clock"])
    listener = socket.create_server(("127.0.0.1", 0), backlog=key_agent.MAX_CLIENTS)

    def dumpable() -> int:
        return ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # type: ignore[no-any-return]  # PR_GET_DUMPABLE

    def report(report_data: bytes) -> "dict[str, object]":
        tell(report_data=report_data.hex())
        answer: dict[str, object] = json.loads(sys.stdin.readline())
        return answer

    def unlock(secret: bytearray, generation: int) -> "dict[str, object]":
        tell(received=secret.hex(), generation=generation, dumpable=dumpable())
        return {"generation": generation + 1, "host_keys": told["host_keys"]}

    tell(port=listener.getsockname()[1], dumpable=dumpable())
    try:
        connection = key_agent.accept_owner(listener, context, owner)
        key_agent.serve_owner(
            connection, key_agent.key_digest(certificate), bytes.fromhex(told["header"]), report, unlock
        )
        tell(ended="")
    except BaseException as error:
        tell(ended=linux.reason(error))
    os._exit(0)


if __name__ == "__main__":
    main()
