# SPDX-License-Identifier: Apache-2.0
"""AMD's service from inside a company network: with its proxy and its own certificate authority, and their faults."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation.checklist import Unreachable
from sevsnp.attestation.kds import Kds
from sevsnp.attestation.kds_cache import Cache
from sevsnp.attestation.kds_http import Limits
from sevsnp.system import trust_store
from tests.support.connect_proxy import HOST, Authority, Proxy, proxying
from tests.support.fake_kds import FakeKds, serving
from tests.support.hierarchy import NOW, Hierarchy
from tests.support.waiting import NET

GENOA = Hierarchy()
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
STORES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """A company's authority that nothing trusts yet, and no proxy yet."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in STORES:
        monkeypatch.delenv(name, raising=False)
    return Authority(tmp_path / "authority")


@pytest.fixture
def fake(authority: Authority) -> Iterator[FakeKds]:
    with serving(FakeKds.of(GENOA), authority.server) as one:
        yield one


@pytest.fixture
def proxy(fake: FakeKds) -> Iterator[Proxy]:
    with proxying(Proxy(int(fake.url.rpartition(":")[2]))) as one:
        yield one


def leaf(tmp_path: Path, url: str, limits: Limits | None = None) -> bool:
    service = Kds(GENOA.root, Cache(tmp_path / "kds"), url, limits=limits or Limits(request=NET, patience=0.0))
    return service.leaf("Genoa", GENOA.chip, GENOA.tcb, NOW) == GENOA.certificate


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_proxy_and_a_private_authority(
    variable: str, authority: Authority, fake: FakeKds, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the service resolves nowhere, so the proxy's tunnel is the only way."""
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    with pytest.raises(Unreachable, match="this machine does not trust the authority of its certificate"):
        leaf(tmp_path, f"https://{HOST}")
    assert fake.asked == []
    monkeypatch.setenv(variable, str(authority.file))
    assert leaf(tmp_path, f"https://{HOST}") and len(fake.asked) == 2
    assert {line.rpartition(" ")[0] for line in proxy.seen} == {f"CONNECT {HOST}:443"}


def test_no_proxy(
    authority: Authority, fake: FakeKds, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert leaf(tmp_path / "direct", fake.url) and proxy.seen == []
    monkeypatch.setenv("NO_PROXY", "192.0.2.1")  # control
    assert leaf(tmp_path / "through", fake.url) and len(proxy.seen) == 2


def test_a_proxy_that_is_not_there(
    authority: Authority, fake: FakeKds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    assert leaf(tmp_path / "control", fake.url)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="no answer from the proxy"):
        leaf(tmp_path, fake.url)


def _trickle(client: socket.socket) -> None:
    """An answer to CONNECT that has no end: a header line each 0.1 s, until the client is gone."""
    client.sendall(b"HTTP/1.1 200 tunnel\r\n")
    with contextlib.suppress(OSError):
        for _ in range(1200):
            client.sendall(b"X: y\r\n")
            time.sleep(0.1)
        finished.append("a proxy's answer")


def _half_handshake(client: socket.socket) -> None:
    """A tunnel to a server that sends a TLS record byte by byte."""
    client.sendall(b"HTTP/1.1 200 tunnel\r\n\r\n")
    client.recv(4096)  # a server answers; it does not begin
    with contextlib.suppress(OSError):
        client.sendall(b"\x16\x03\x03\x10\x00\x02\x00\x0f\xfc")
        for _ in range(1200):
            client.sendall(b"\0")
            time.sleep(0.1)
        finished.append("a handshake")


finished: list[str] = []


@pytest.mark.parametrize("misbehave", [_trickle, _half_handshake])
def test_the_time_limit_includes_the_connection_through_the_proxy(
    misbehave: object, authority: Authority, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also counts before the connection is made. A socket's own time-out would start anew with each byte."""
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    proxy.misbehave = misbehave  # type: ignore[assignment]
    with pytest.raises(Unreachable, match="no answer in 1 s"):
        leaf(tmp_path, f"https://{HOST}", Limits(request=1.0, patience=0.0))
    # It was left in the middle.
    assert proxy.seen and finished == []


@pytest.mark.parametrize("way", ["the service", "a proxy"])
@pytest.mark.parametrize("answers", [False, True])
def test_the_time_limit_includes_the_name_lookup(
    way: str, answers: bool, authority: Authority, fake: FakeKds, proxy: Proxy, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The resolver waits for its servers without a time limit. Control: a resolver that answers."""
    asked, ended, honest = [], threading.Event(), socket.getaddrinfo

    def resolver(host: str, *more: Any, **options: Any) -> Any:
        if host != "slow.invalid":
            return honest(host, *more, **options)
        asked.append(host)
        if not answers:
            ended.wait(NET)
        return honest("127.0.0.1", *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    address = f"slow.invalid:{(proxy if way == 'a proxy' else fake).url.rpartition(':')[2]}"
    if way == "a proxy":
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
    url = f"https://{HOST if way == 'a proxy' else address}"
    reason = "this machine does not trust the authority|no answer from the proxy|SSLError"
    try:
        if answers and way == "a proxy":
            assert leaf(tmp_path, url)
        else:
            # The name is not that of the service's certificate: it was reached, and the name was still compared.
            with pytest.raises(Unreachable, match=reason if answers else "no answer from DNS for its address in 1 s"):
                leaf(tmp_path, url, Limits(request=NET if answers else 1.0, patience=0.0))
        assert asked and not ended.is_set()
    finally:
        ended.set()


def test_the_certificate_authorities_come_from_the_system_or_the_environment(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = trust_store.authorities()
    assert system is True or Path(str(system)).is_file()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    assert trust_store.authorities() == str(authority.file)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere"))
    assert trust_store.authorities() != str(tmp_path / "nowhere")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert trust_store.authorities() == str(tmp_path)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(authority.file))
            assert trust_store.authorities() is True  # requests reads it
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.delenv("SSL_CERT_DIR")
    monkeypatch.setattr(trust_store, "_FILES", ())
    assert trust_store.authorities() in (True, system)
