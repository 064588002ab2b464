# SPDX-License-Identifier: Apache-2.0
"""A time limit for slow transfers. A socket's own time-out starts anew with every byte; this one does not.

A registry that sends one byte every few seconds would delay a build for hours: in the headers, between chunks or in a
file. So a thread watches the request, and shuts its connection down when the time is over.
"""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from sevsnp.system.name_lookup import look_up

# Bytes a second. Below this rate, building is faster than waiting.
FLOOR = 128 << 10

_current = threading.local()


class Watch:
    """The time limit for one request of this thread: ``grace`` seconds; received bytes extend it.

    There are never more than ``grace`` seconds left, however fast the transfer was before.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.expired = False
        self._deadline = time.monotonic() + grace
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._wait, name="registry watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._before = getattr(_current, "watch", None)
        _current.watch = self
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.watch = self._before
        self._done.set()
        self._thread.join()

    def left(self) -> float:
        """The seconds until the time is over."""
        return max(self._deadline - time.monotonic(), 0.0)

    def earn(self, count: int) -> None:
        """``count`` bytes were transferred."""
        self._deadline = min(self._deadline + count / FLOOR, time.monotonic() + self.grace)

    def renew(self, seconds: float = 0.0) -> None:
        """Another step begins: it has the whole grace again, and ``seconds`` more for work that takes long."""
        self._deadline = time.monotonic() + self.grace + seconds

    def use(self, connection: "socket.socket | None") -> None:
        """The request uses ``connection`` from now on."""
        with self._lock:
            self._socket = connection
            if self.expired:
                self._shut()

    def _wait(self) -> None:
        while not self._done.wait(max(self._deadline - time.monotonic(), 0.001)):
            if time.monotonic() >= self._deadline:
                with self._lock:
                    self.expired = True
                    self._shut()
                return

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Below TLS: SSLSocket.shutdown would remove the TLS session while another thread reads from it.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def current_watch() -> Watch:
    """The watch of the request that this thread makes."""
    watch = _current.watch
    assert isinstance(watch, Watch)
    return watch


def _watched(connection: Any) -> None:
    current_watch().use(connection.sock)


class _Early:
    """A connection that the watch can shut down before it is established, while a proxy answers byte by byte.

    The look-up of the host's name has the watch's time limit, too. A TLS handshake needs no watch: the socket's
    time-out is valid for a whole handshake.
    """

    host: str
    port: int

    def _new_conn(self) -> socket.socket:
        watch, name = current_watch(), self.host
        try:
            addresses = look_up(name, self.port, watch.left())
        except TimeoutError as error:
            raise ConnectTimeoutError(self, str(error)) from error
        except socket.gaierror as error:
            raise NameResolutionError(name, self, error) from error  # type: ignore[arg-type]
        try:
            for number, self.host in enumerate(addresses, 1):
                try:
                    made: socket.socket = super()._new_conn()  # type: ignore[misc]
                    break
                except NewConnectionError:
                    if watch.expired or number == len(addresses):
                        raise
        finally:
            self.host = name  # the certificate must be for the name
        watch.use(made)
        return made

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        _watched(self)


class _Http(_Early, HTTPConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        _watched(self)  # a connection that is used again is already connected
        super().request(*args, **kwargs)


class _Https(_Early, HTTPSConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        _watched(self)
        super().request(*args, **kwargs)


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


class WatchedAdapter(HTTPAdapter):
    """requests' adapter whose connections pass their sockets to the thread's watch."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        return manager
