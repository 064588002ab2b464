# SPDX-License-Identifier: Apache-2.0
"""Logins in addresses: the part that is shown, and the server that gets them."""

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.packages.by_digest import fetch_by_digest
from sevsnp.packages.sources import clean_uri
from sevsnp.settings.resolved import resolve
from sevsnp.system.logins import split_login, without_login, without_logins

LOGIN = "me:p%40ss/word".replace("/", "%2F")
WHOLE = base64.b64encode(b"me:p@ss/word").decode()
CONTENT = b"an archive"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("address", "shown", "in_text"),
    [
        ("https://me:pw@host/x", "https://…@host/x", "https://…@host/x"),
        ("https://me@host/x", "https://…@host/x", "https://…@host/x"),
        ("oci://me:a/b@c@host/x", "oci://…@host/x", "oci://…@host/x"),
        ("https://me:a/b@host/x", "https://…@host/x", "https://me:a/b@host/x"),  # no login by RFC 3986
        ("https://host/x", "https://host/x", "https://host/x"),
        ("bootloader:3", "bootloader:3", "bootloader:3"),
        ("me@host", "me@host", "me@host"),
    ],
)
def test_the_login_of_an_address_is_not_shown(address: str, shown: str, in_text: str) -> None:
    assert (without_login(address), without_logins(address)) == (shown, in_text)
    assert (
        without_logins(f"curl {address} -o x\nand {address}") == f"curl {in_text} -o x\nand {in_text}" or "oci" in shown
    )


def test_splitting() -> None:
    assert split_login(f"https://{LOGIN}@host:1/x?y=a@b") == ("https://host:1/x?y=a@b", LOGIN)
    assert split_login("https://host/a@b") == ("https://host/a@b", "")


@contextmanager
def server(redirect: str = "") -> Iterator[tuple[str, list[str]]]:
    """A server that demands LOGIN, or redirects; yields its host and port, and the logins that it was sent."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            if redirect and self.path == "/there":
                self.send_response(302)
                self.send_header("Location", redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200 if seen[-1] == f"Basic {WHOLE}" else 401)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{made.server_port}", seen
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(uri: str, tmp_path: Path, digest: str = DIGEST) -> bytes:
    return fetch_by_digest("PACKAGES_RELEASE", uri, digest, cache_dir=tmp_path / "cache").read_bytes()


@pytest.mark.parametrize("redirect", ["", "/here"])
def test_a_login_is_sent_to_its_server(redirect: str, tmp_path: Path) -> None:
    with server(redirect) as (host, seen):
        assert fetch(f"http://{LOGIN}@{host}/there", tmp_path) == CONTENT
        assert set(seen) == {f"Basic {WHOLE}"}
        with pytest.raises(UserError, match=rf"PACKAGES_RELEASE=http://{host}/there: cannot be fetched: HTTP .* 401"):
            fetch(f"http://{host}/there", tmp_path / "control")


def test_a_redirect_to_what_is_no_address(tmp_path: Path) -> None:
    """As `http://[::1`: the server's text, in which nothing can find a host. The test above is the control."""
    said = r"cannot be fetched: HTTP status 302 redirects to http://…@\[::1/here"
    with server("http://me:too@[::1/here") as (host, _), pytest.raises(UserError, match=said):
        fetch(f"http://{LOGIN}@{host}/there", tmp_path)


def test_a_login_is_sent_to_no_other_server(tmp_path: Path) -> None:
    with server() as (other, seen), server(f"http://you:too@{other}/here") as (host, first):
        with pytest.raises(UserError, match="HTTP status 401"):
            fetch(f"http://{LOGIN}@{host}/there", tmp_path)
        assert set(first) == {f"Basic {WHOLE}"} and set(seen) == {""}
        assert fetch(f"http://{LOGIN}@{other}/here", tmp_path) == CONTENT  # control: there it would have been right


def test_no_message_contains_a_login(tmp_path: Path) -> None:
    messages = []
    with server() as (host, _):
        for uri, digest in ((f"http://me:wrong@{host}/x", DIGEST), (f"http://{LOGIN}@{host}/x", "0" * 64),
                            ("ftp://me:pw@host/x", DIGEST)):  # fmt: skip
            with pytest.raises(UserError) as caught:
                fetch(uri, tmp_path, digest)
            messages.append(f"{caught.value.message} {caught.value.hint}")
    for name, value in (("POLICY", "https://me:pw@host/x"), ("NOTHING", "https://me:p/w@host")):
        with pytest.raises(UserError) as caught:
            resolve({name: value}, {}, tmp_path / "config.yaml")
        messages.append(caught.value.message)
    with pytest.raises(UserError) as caught:
        clean_uri("ftp://me:pw@host/debian", "MIRROR")
    messages.append(caught.value.message)
    for message in messages:
        assert "…@" in message and not any(word in message for word in ("wrong", "p%40ss", "pw@", "p/w@")), message
