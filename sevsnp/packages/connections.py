# SPDX-License-Identifier: Apache-2.0
"""Connections to mirrors: kept open, shared by threads, with the machine's proxies and certificates."""

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager
from urllib3.util import make_headers

from sevsnp.packages import hostapt
from sevsnp.system.logins import split_login, without_login
from sevsnp.system.text import printable

TIMEOUT = 30.0  # seconds without a byte
REDIRECTS = 5
# The page of a 404 is read up to this size: the connection can be used again only after its end.
_ERROR_PAGE = 64 << 10


class DroppedError(Exception):
    """The archive answers that it does not have the file."""


class StatusError(Exception):
    """An answer that is neither the file nor "not here". ``final``: a second request would get the same answer."""

    def __init__(self, status: int, reason: str | None) -> None:
        super().__init__(f"HTTP status {status} {reason or ''}".strip())
        self.final = status < 500 and status != 429


class Connections:
    """Connections that are kept open, at most ``size`` to a server; ``settings`` are apt's, for their proxies."""

    def __init__(self, settings: Mapping[str, str], size: int) -> None:
        self._settings, self._size = dict(settings), size
        self._tls = ssl.create_default_context()
        self._opening = threading.Lock()
        self._managers: dict[str, PoolManager] = {}

    def close(self) -> None:
        for manager in self._managers.values():
            manager.clear()

    @contextmanager
    def get(self, uri: str, headers: Mapping[str, str]) -> Iterator[BaseHTTPResponse]:
        """The answer 200, 206 or 416 to a request for ``uri``. Its body is not decoded; the caller reads it.

        A login in ``uri`` is sent to the server that ``uri`` names, and to no other one that a redirect leads to.
        Raises :class:`DroppedError`, :class:`StatusError`, and urllib3's HTTPError or ``OSError`` for network trouble.
        """
        uri, login = split_login(uri)
        server = urlsplit(uri)[:2]
        own = make_headers(basic_auth=unquote(login)) if login else {}
        for _ in range(1 + REDIRECTS):
            response = self._manager(self._proxy(uri)).request(
                "GET",
                uri,
                headers={
                    "User-Agent": "openend2e-sevsnp",
                    "Accept-Encoding": "identity",
                    **headers,
                    **(own if urlsplit(uri)[:2] == server else {}),
                },
                timeout=TIMEOUT,
                retries=False,
                redirect=False,  # urllib3 would read the whole body of each redirect, however long
                preload_content=False,
                decode_content=False,
            )
            try:
                # The target of a redirect; False and None for another answer.
                target = response.get_redirect_location()
                if response.status in (200, 206, 416):
                    yield response
                    return
                response.read(_ERROR_PAGE)
                if response.status in (404, 410):
                    raise DroppedError
                if not target:
                    raise StatusError(response.status, response.reason)
            finally:
                # A connection whose answer was read to its end is back in the pool by now; any other cannot be used
                # again.
                response.close()
            try:
                uri, _ = split_login(urljoin(uri, target))
            except ValueError:
                raise StatusError(response.status, f"redirects to {printable(without_login(target))}") from None
            if urlsplit(uri).scheme not in ("http", "https"):
                raise StatusError(response.status, f"redirects to {uri}")
        raise StatusError(response.status, f"redirects more than {REDIRECTS} times")

    def _proxy(self, uri: str) -> str:
        """The proxy for ``uri``, in apt's order: apt's own setting, else the environment's; no_proxy overrides both."""
        parts = urlsplit(uri)
        proxy = hostapt.find_proxy(self._settings, uri) or getproxies().get(parts.scheme, "")
        if not proxy or proxy == hostapt.DIRECT or proxy_bypass(parts.netloc):
            return ""
        return proxy if "://" in proxy else f"http://{proxy}"

    def _manager(self, proxy: str) -> PoolManager:
        with self._opening:
            if proxy not in self._managers:
                self._managers[proxy] = self._open(proxy)
            return self._managers[proxy]

    def _open(self, proxy: str) -> PoolManager:
        if not proxy:
            return PoolManager(maxsize=self._size, ssl_context=self._tls)
        login = urlsplit(proxy).netloc.rpartition("@")[0]
        return ProxyManager(
            proxy,
            maxsize=self._size,
            ssl_context=self._tls,
            proxy_ssl_context=self._tls,
            proxy_headers=make_headers(proxy_basic_auth=unquote(login)) if login else None,
        )
