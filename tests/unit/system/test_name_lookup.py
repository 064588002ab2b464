# SPDX-License-Identifier: Apache-2.0
"""The addresses of a name, found within a time limit; each of them is tried."""

import socket
import threading
from typing import Any

import pytest
import requests

from sevsnp.system.name_lookup import look_up
from sevsnp.system.transfers import Watch, WatchedAdapter
from tests.support.fake_kds import FakeKds, serving
from tests.support.hierarchy import Hierarchy
from tests.support.waiting import NET


def answer(*addresses: str) -> Any:
    """A resolver with these addresses for one name."""
    honest = socket.getaddrinfo

    def resolver(host: str, port: int, *more: Any, **options: Any) -> Any:
        if host != "several.invalid":
            return honest(host, port, *more, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    return resolver


def test_addresses() -> None:
    assert look_up("127.0.0.1", 1, NET) == ["127.0.0.1"] and look_up("::1", 1, NET) == ["::1"]
    for wrong in ("a" * 64, "two words"):
        with pytest.raises(socket.gaierror):
            look_up(wrong, 1, NET)


def test_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stop.wait(NET) and [])
    with pytest.raises(TimeoutError, match=r"the look-up of slow.invalid took more than 0.1 s"):
        look_up("slow.invalid", 1, 0.1)
    assert not stop.is_set()
    stop.set()


@pytest.mark.parametrize(("addresses", "reached"), [(("127.0.0.2", "127.0.0.1"), True), (("127.0.0.2",), False)])
def test_every_address_is_tried(addresses: tuple[str, ...], reached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "several.invalid")
    with serving(FakeKds.of(Hierarchy())) as fake, Watch(NET), requests.Session() as session:
        session.mount("http://", WatchedAdapter())
        monkeypatch.setattr(socket, "getaddrinfo", answer(*addresses))
        url = f"http://several.invalid:{fake.url.rpartition(':')[2]}/vcek/v1/Genoa/cert_chain"
        if reached:
            assert session.get(url, timeout=NET).status_code == 200
        else:
            with pytest.raises(requests.ConnectionError):
                session.get(url, timeout=NET)
        assert len(fake.asked) == reached
