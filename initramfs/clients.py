# SPDX-License-Identifier: Apache-2.0
"""Serving connections side by side, a limited number at a time. Standard library only."""

import socket
import threading
import time
from collections.abc import Callable


def serve_clients(
    listener: socket.socket, most: int, serve: "Callable[[socket.socket], object]", say: "Callable[[str], object]"
) -> None:
    """Call ``serve`` with each client in a thread of its own, ``most`` at a time, until ``listener`` is closed.

    The connection is closed after it. ``say`` is told what went wrong with one, which is no matter of the others'.
    """
    places = threading.Semaphore(most)

    def one(client: socket.socket) -> None:
        try:
            with client:
                serve(client)
        except OSError as error:
            say(f"{error}")
        finally:
            places.release()

    while True:
        places.acquire()
        try:
            client, _ = listener.accept()
        except OSError as error:  # Linux hands a connection's early network error to accept(2)
            places.release()
            if listener.fileno() < 0:
                return
            say(f"{error}")
            time.sleep(0.1)
            continue
        try:
            threading.Thread(target=one, args=(client,), daemon=True).start()
        except RuntimeError as error:  # no memory for one more thread
            client.close()
            places.release()
            say(f"{error}")
