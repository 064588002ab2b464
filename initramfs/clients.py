# SPDX-License-Identifier: Apache-2.0
"""Serve connections in parallel, a limited number at a time. Standard library only."""

import socket
import threading
import time
from collections.abc import Callable


def serve_clients(
    listener: socket.socket, most: int, serve: "Callable[[socket.socket], object]", say: "Callable[[str], object]"
) -> None:
    """Call ``serve`` with each client in a thread of its own, ``most`` at a time, until ``listener`` is closed.

    Each connection is closed after its call. An error in one connection goes to ``say`` and does not affect the others.
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
        except OSError as error:  # on Linux, accept(2) also returns a pending network error of the new connection
            places.release()
            if listener.fileno() < 0:
                return
            say(f"{error}")
            time.sleep(0.1)
            continue
        try:
            threading.Thread(target=one, args=(client,), daemon=True).start()
        except RuntimeError as error:  # there is no memory for another thread
            client.close()
            places.release()
            say(f"{error}")
