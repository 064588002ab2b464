# SPDX-License-Identifier: Apache-2.0
"""Requests to one registry, with limits of time and size, safe redirects, and a login if the registry asks for one."""

import contextlib
import io
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException, responses
from http.cookiejar import DefaultCookiePolicy
from typing import IO, Any
from urllib.parse import urljoin

import requests
from urllib3.exceptions import HTTPError
from urllib3.util import Url, parse_url

from sevsnp.store.oci_login import Login
from sevsnp.store.oci_reference import Reference, Refused, Tampered, Unavailable, clean, is_loopback
from sevsnp.system.files import CHUNK
from sevsnp.system.transfers import FLOOR, Watch, WatchedAdapter, current_watch

REDIRECTS = 5
# Bytes a second. A registry stores at least so many of the bytes that it received before it answers.
_COMMIT = 8 << 20
_TOKEN_LIMIT = 1 << 20
_WORDS_LIMIT = 1 << 14
# An answer within so many seconds is quick. The time beyond that adds up, until it reaches the time-out.
_QUICK = 0.5
# 500: Debian's registry answers so, too, while another client sends the same content.
_PASSING = (500, 502, 503, 504)
_LATE = "no answer in time"
# ValueError: malformed URLs and headers.
_TROUBLE = (requests.RequestException, HTTPError, HTTPException, OSError, ValueError)


class Answer:
    """A registry's answer whose body is not read yet."""

    def __init__(self, response: requests.Response, watch: Watch, reference: Reference) -> None:
        self._response, self._watch, self._reference = response, watch, reference
        self.status = response.status_code
        self.headers = response.headers

    def read(self, size: int = CHUNK) -> bytes:
        """Up to ``size`` bytes of the body; none at the end. Raises :class:`Unavailable`."""
        piece = self._read(size)
        self._watch.earn(len(piece))
        return piece

    def document(self, limit: int) -> bytes:
        """The whole body, at most ``limit`` bytes and ``timeout`` seconds. Raises :class:`Unavailable`, Tampered."""
        body = bytearray()
        while piece := self._read(CHUNK):
            body += piece
            if len(body) > limit:
                raise Tampered(f"{self._reference}: an answer of more than {limit} bytes")
        return bytes(body)

    def words(self) -> str:
        """The registry's error message, if it has the form of the specification: one clean line."""
        try:
            error = json.loads(self.document(_WORDS_LIMIT))["errors"][0]
            return clean(str(error.get("message") or error.get("code") or ""))
        except (Unavailable, Tampered, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return ""

    def _read(self, size: int) -> bytes:
        with _plainly(self._reference, self._watch):
            piece: bytes = self._response.raw.read1(size, decode_content=False)
            # A connection that our watch shut down can look like a complete body.
            if self._watch.expired:
                raise TimeoutError
            return piece


class Transport:
    """The client for the registry of ``reference``; it keeps connections open. Several threads may use it."""

    def __init__(self, reference: Reference, timeout: float) -> None:
        self._reference, self._timeout = reference, timeout
        self._session = _Session()
        self._session.mount("https://", WatchedAdapter())
        self._session.mount("http://", WatchedAdapter())
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._login = Login(reference, _TokenSession(self))
        self._origin = _origin(parse_url(reference.base))
        self._waited = 0.0

    @contextlib.contextmanager
    def request(
        self,
        method: str,
        url: str,
        expected: tuple[int, ...],
        *,
        headers: Mapping[str, str] | None = None,
        body: IO[bytes] | bytes | None = None,
        size: int = 0,
    ) -> Iterator[Answer]:
        """The answer to a request for ``url``, absolute or relative to the repository; ``body`` has ``size`` bytes.

        Raises :class:`Unavailable` if there is no answer, and Refused if its status is not ``expected``.
        """
        with Watch(self._timeout) as watch:
            upload = None if body is None else _Upload(body, size, watch)
            started = time.monotonic()
            with _plainly(self._reference, watch):
                response = self._send(method, urljoin(f"{self._reference.base}/", url), headers or {}, upload)
                watch.renew()
            if upload is None:
                self._be_patient(time.monotonic() - started, response)
            with contextlib.closing(response):
                answer = Answer(response, watch, self._reference)
                if answer.status not in expected:
                    raise self._unexpected(method, answer)
                if method == "HEAD" or answer.headers.get("Content-Length") == "0":
                    answer.read(1)  # read to the end, so that the connection is kept
                yield answer

    def _be_patient(self, seconds: float, response: requests.Response) -> None:
        """Limit the sum of slow answers: one for each task of a build would cost as many minutes as there are tasks."""
        self._waited += max(0.0, seconds - _QUICK)
        if self._waited > self._timeout:
            response.close()
            raise Unavailable(f"{self._reference}: too slow: {self._waited:.0f} s spent on waiting for its answers")

    def upload_url(self, answer: Answer) -> str:
        """The URL at which an upload continues; it must be on this registry. Raises :class:`Unavailable`."""
        location = answer.headers.get("Location", "")
        with _plainly(self._reference, current_watch()):
            url = parse_url(urljoin(f"{self._reference.base}/", location))
        if not location or _origin(url) != self._origin or url.auth:
            raise Unavailable(f"{self._reference}: redirects uploads to {_where(url) if location else 'no address'}")
        return url.url

    def token(self, url: str, **options: Any) -> requests.Response:
        """Request a token for oras: over a connection that others cannot read, without redirects, body bounded."""
        target = self._checked(parse_url(url), "its logins")
        options.pop("verify", None)
        with contextlib.closing(self._once("GET", target, None, **options)) as response:
            # The body that oras reads; requests would read it without a size limit.
            response._content = Answer(response, current_watch(), self._reference).document(_TOKEN_LIMIT)
        return response

    def _send(self, method: str, url: str, headers: Mapping[str, str], upload: "_Upload | None") -> requests.Response:
        target, asked, again, hops = parse_url(url), False, method in ("GET", "HEAD"), 0
        while True:
            sent = {**headers}
            ours = _origin(target) == self._origin
            if ours and self._login.authorization:
                sent["Authorization"] = self._login.authorization
            try:
                response = self._once(method, self._checked(target, "us"), upload, headers=sent)
            except requests.ConnectionError as error:
                if not again or isinstance(error, requests.Timeout | requests.exceptions.SSLError):
                    raise
                response = None
            if again and (response is None or response.status_code in _PASSING):
                # Try once more: a kept connection may be closed by now, or a gateway may have lost its registry for a
                # moment.
                again = False
                time.sleep(min(0.5, self._timeout / 4))
            elif response is None:
                raise AssertionError
            elif response.status_code == 401 and ours:
                if asked:
                    raise self._login.refusal()
                asked = True
                self._login.answer(response)
            elif method in ("GET", "HEAD") and response.is_redirect:
                hops += 1
                if hops > REDIRECTS:
                    raise Unavailable(f"{self._reference}: redirects more than {REDIRECTS} times")
                target = parse_url(urljoin(target.url, response.headers["Location"]))
            else:
                return response
            if response is not None:
                response.close()

    def _once(self, method: str, target: Url, upload: "_Upload | None", **options: Any) -> requests.Response:
        headers = {"User-Agent": "openend2e-sevsnp", "Accept-Encoding": "identity", **options.pop("headers", {})}
        patience = self._timeout
        if upload is not None:
            upload.rewind()
            patience += upload.size / _COMMIT
            headers.setdefault("Content-Type", "application/octet-stream")
        # Requests to this machine must not go through a proxy.
        direct: Any = dict.fromkeys(("http", "https", "all")) if is_loopback(target.host or "") else None
        return self._session.request(
            method,
            target.url,
            headers=headers,
            data=upload,
            stream=True,
            allow_redirects=False,
            timeout=(self._timeout, patience),
            auth=_as_it_is,
            proxies=direct,
            **options,
        )

    def _checked(self, url: Url, what: str) -> Url:
        """``url``, if no third party can read or change what is sent there. Raises :class:`Unavailable`."""
        local = self._reference.scheme == "http" and url.scheme == "http" and is_loopback(url.host or "")
        if not ((url.scheme == "https" and url.host) or local) or url.auth:
            raise Unavailable(f"{self._reference}: redirects {what} to {_where(url)}")
        return url

    def _unexpected(self, method: str, answer: Answer) -> Refused:
        what = "uploads" if method in ("POST", "PUT") else "requests"
        status = f"{answer.status} {responses.get(answer.status, '')}".strip()
        words = answer.words() if method != "HEAD" else ""
        return Refused(f"{self._reference}: answers {what} with {status}{f': {words}' if words else ''}")


class _Upload:
    """A body of known length that is read while it is sent. requests and urllib3 need no more methods than these."""

    def __init__(self, body: IO[bytes] | bytes, size: int, watch: Watch) -> None:
        self._stream = io.BytesIO(body) if isinstance(body, bytes) else body
        self.size, self._watch = size, watch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def rewind(self) -> None:
        self._stream.seek(0)
        self._watch.renew()

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        # After the last piece the registry needs time to store the body.
        if piece:
            self._watch.earn(len(piece))
        else:
            self._watch.renew(self.size / _COMMIT)
        return piece


class _TokenSession:
    """The part of the transport that oras sees."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, url: str, **options: Any) -> requests.Response:
        return self._transport.token(url, **options)

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        assert method == "GET", method
        return self._transport.token(url, **options)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: otherwise requests would read the whole body of a redirect before we can decide about it."""


@contextlib.contextmanager
def _plainly(reference: Reference, watch: Watch) -> Iterator[None]:
    """Report network trouble as one line. It contains only the system's words: a signed URL is a secret."""
    try:
        yield
    except _TROUBLE as error:
        if watch.expired:
            what = f"gave up: for {watch.grace:g} s less than {FLOOR >> 10} KiB/s"
        elif isinstance(error, requests.Timeout | TimeoutError):
            what = _LATE
        else:
            what = _innermost(error)
        raise Unavailable(f"{reference}: {what}") from None


def _innermost(error: BaseException) -> str:
    """The last exception of a chain; it has the system's own words."""
    seen = [error]
    while len(seen) < 20:
        inside = [getattr(seen[-1], "reason", None), *seen[-1].args, seen[-1].__cause__, seen[-1].__context__]
        following = next((it for it in inside if isinstance(it, BaseException) and it not in seen), None)
        if following is None:
            break
        seen.append(following)
    for found in reversed(seen):
        if isinstance(found, TimeoutError):
            return _LATE
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"certificate not accepted: {clean(found.verify_message)}"
        if isinstance(found, OSError) and found.strerror and not isinstance(found, requests.RequestException):
            return clean(found.strerror)
    return f"gave an invalid HTTP response ({type(seen[-1]).__name__})"


def _origin(url: Url) -> tuple[str | None, str | None, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme or "")


def _where(url: Url) -> str:
    return clean(f"{url.scheme}://{url.netloc or ''}" if url.scheme else url.netloc or "nowhere", 80)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Replace requests' own login, which it takes from ~/.netrc for every host on the way."""
    return request
