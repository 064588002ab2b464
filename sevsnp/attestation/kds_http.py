# SPDX-License-Identifier: Apache-2.0
"""Questions to AMD's key distribution service or a mirror of it: limits of time and size, and waits after a 429.

An answer has a total time limit, however slowly its bytes come, and a size limit. After a 429 the client waits as long
as the server asks, but also only up to a limit. Proxies come from the environment (HTTPS_PROXY, NO_PROXY).
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from sevsnp.attestation.checklist import Unreachable
from sevsnp.system.logins import without_login

if TYPE_CHECKING:
    import requests

_FIRST_WAIT, _LONGEST_WAIT = 2.0, 10.0  # seconds; the service answers the same request only once in ten seconds


class Limits(NamedTuple):
    """Limits in seconds: ``request`` for one whole answer, however slow; ``patience`` for all waits after 429s.

    ``whole`` is the limit for all requests and waits of one client together; None: there is no such limit.
    """

    request: float = 15.0
    patience: float = 60.0
    whole: float | None = None

    def short(self) -> "Limits":
        """The limits for an answer that nobody demands: one request, and no wait."""
        return self._replace(request=min(self.request, OPTIONAL), patience=0.0)


OPTIONAL = 4.0


class Client:
    """A client of the service at ``base``. ``say`` is told of each request before it is made."""

    def __init__(self, base: str, sleep: Callable[[float], None], say: Callable[[str], None]) -> None:
        self._base, self._sleep, self._say = base.rstrip("/"), sleep, say
        self._shown = without_login(self._base)
        self._begun: float | None = None

    def get(self, path: str, what: str, size: int, limits: Limits) -> bytes:
        """The body of the answer for ``path``, at most ``size`` bytes. Raises :class:`Unreachable`."""
        patience, wait = limits.patience, _FIRST_WAIT
        self._say(f"asking {self._shown} for {what}")
        while True:
            status, asked, body = self._once(path, size, self._left(limits))
            if status == 200:
                return body
            if status == 404:
                raise Unreachable("answers 404: it knows no such chip or TCB version")
            if status not in (429, 500, 502, 503, 504):
                raise Unreachable(f"answers {status}")
            wait = min(max(asked, wait), _LONGEST_WAIT)
            if not patience:
                raise Unreachable(f"answers {status}")
            if wait > patience:
                raise Unreachable(f"answers {status} for more than {limits.patience:.0f} s")
            if limits.whole is not None and wait > self._left(limits):
                raise Unreachable(f"answers {status}, and {_OVER.format(limits.whole)}")
            self._say(f"{self._shown} answers {status}: asking for {what} again in {wait:.0f} s")
            self._sleep(wait)
            patience, wait = patience - wait, wait * 2

    def _left(self, limits: Limits) -> float:
        """The seconds for the next request."""
        if limits.whole is None:
            return limits.request
        now = time.monotonic()
        self._begun = now if self._begun is None else self._begun
        left = self._begun + limits.whole - now
        if left <= 0:
            raise Unreachable(_OVER.format(limits.whole))
        return min(limits.request, left)

    def _once(self, path: str, size: int, seconds: float) -> tuple[int, float, bytes]:
        import requests
        import urllib3

        from sevsnp.system.transfers import Watch, WatchedAdapter
        from sevsnp.system.trust_store import authorities

        with Watch(seconds) as watch, requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, WatchedAdapter())
            try:
                # The service sends no redirects; following one could only lead the owner's machine to another server.
                answer = session.get(
                    self._base + path, stream=True, timeout=seconds, allow_redirects=False, verify=authorities()
                )
                body = answer.raw.read(size + 1, decode_content=True) if answer.status_code == 200 else b""
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                if "the look-up of" in str(error):
                    raise Unreachable(f"no answer from DNS for its address in {seconds:.3g} s") from error
                late = watch.expired or "timed out" in str(error)
                raise Unreachable(_late(seconds) if late else _problem(error)) from error
            if watch.expired:
                raise Unreachable(_late(seconds))
            if len(body) > size:
                raise Unreachable(f"more than {size} bytes")
            return answer.status_code, _retry_after(answer), body


_OVER = "the time limit of {:.3g} s for all requests is over"


def _late(seconds: float) -> str:
    return f"no answer in {seconds:.3g} s"


def _problem(error: Exception) -> str:
    """A few words about a failed request, without the text of the other side."""
    import requests

    if isinstance(error, requests.exceptions.ProxyError):
        return "no answer from the proxy (HTTPS_PROXY, NO_PROXY)"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "this machine does not trust the authority of its certificate (SSL_CERT_FILE, REQUESTS_CA_BUNDLE)"
    return type(error).__name__


def _retry_after(answer: "requests.Response") -> float:
    try:
        return max(0.0, float(answer.headers.get("Retry-After", "")))
    except ValueError:
        return 0.0
