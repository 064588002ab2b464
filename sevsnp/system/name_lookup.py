# SPDX-License-Identifier: Apache-2.0
"""Look up a host's addresses within a time limit. The C library's resolver has none that a program can set.

A resolver whose servers do not answer takes 5 s for each server and attempt (resolv.conf(5)), whatever time-out the
connection has.
"""

import socket
import threading


def look_up(host: str, port: int, seconds: float) -> list[str]:
    """The numeric addresses of ``host``, in the order in which they should be tried.

    Raises OSError as ``socket.getaddrinfo`` does, and TimeoutError after ``seconds``. The resolver cannot be stopped:
    its thread goes on, but keeps neither the caller nor the end of the process waiting.
    """
    found: list[str] = []
    failed: list[OSError] = []
    done = threading.Event()

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(address[0]) for *_, address in answers))
        except UnicodeError:
            failed.append(socket.gaierror(socket.EAI_NONAME, "not a host name"))
        except OSError as error:
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=ask, name="name look-up", daemon=True).start()
    if not done.wait(seconds):
        raise TimeoutError(f"the look-up of {host} took more than {seconds:.3g} s")
    if failed:
        raise failed[0]
    return found
