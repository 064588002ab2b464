# SPDX-License-Identifier: Apache-2.0
"""Downloads from a real server: connections that are kept open, resumed files, and their failures."""

import base64
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.packages import download as downloading
from sevsnp.packages.connections import Connections, DroppedError
from sevsnp.packages.fetch import PARALLEL, cached_path, fetch
from sevsnp.packages.lock import Package
from sevsnp.packages.sources import Sources
from tests.support.mirror_server import Mirror
from tests.support.processes import ends_with_us
from tests.support.registry_logins import Certificate
from tests.support.waiting import NET, wait_until

SIZE = 3_000_000
BROKEN = 1_000_000


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, and no waiting between attempts."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(downloading.Meter, "wait", lambda self, seconds: self.stopped.wait(min(seconds, 0.01)))


def content(number: int = 0, size: int = SIZE) -> bytes:
    return random.Random(number).randbytes(size)


def pinned(data: bytes, name: str = "tool") -> Package:
    filename = f"pool/main/{name}_1.0_amd64.deb"
    return Package(name, "1.0", "amd64", "debian", filename, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as started:
        yield started


@pytest.fixture
def package(mirror: Mirror) -> Package:
    made = pinned(content())
    mirror.files[f"/{made.filename}"] = content()
    return made


def get(package: Package, mirror: Mirror, cache: Path) -> bytes:
    sources = Sources(mirror.uri, "", "test")
    return fetch([package], cache_dir=cache, sources=lambda: sources)[package].read_bytes()


def begin(package: Package, cache: Path, data: bytes) -> Path:
    """What a killed run leaves: the beginning of a file."""
    part = cached_path(package, cache).with_name(f"{package.deb}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(data)
    return part


def files_in(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file()]


def test_connections_are_used_again(mirror: Mirror, tmp_path: Path) -> None:
    packages = []
    for number in range(30):
        data = content(number, 5000 + number)
        packages.append(pinned(data, f"tool{number}"))
        mirror.files[f"/{packages[-1].filename}"] = data
    sources = Sources(mirror.uri, "", "test")
    found = fetch(packages, cache_dir=tmp_path, sources=lambda: sources)
    assert [path.read_bytes() for path in found.values()] == [content(number, 5000 + number) for number in range(30)]
    assert len(mirror.requests) == 30 and mirror.connections <= PARALLEL


def test_a_connection_that_the_server_closed_is_opened_again(mirror: Mirror, tmp_path: Path) -> None:
    """Control for the test above: the server closes the connection after each answer, so each file needs a new one."""
    packages = [pinned(content(number, 5000), f"tool{number}") for number in range(6)]
    mirror.files |= {f"/{package.filename}": content(number, 5000) for number, package in enumerate(packages)}
    mirror.breaks = [5000] * 6
    sources = Sources(mirror.uri, "", "test")
    assert len(fetch(packages, cache_dir=tmp_path, sources=lambda: sources)) == 6
    assert mirror.connections == 6


def test_a_missing_file_does_not_close_the_connection(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    """The page of a 404 is read, and the next request goes over the same connection."""
    gone = pinned(content(1), "gone")
    connections = Connections({}, 1)
    meter = downloading.Meter(0, 0, None)
    for each in (gone, package):
        target = cached_path(each, tmp_path)
        target.parent.mkdir(parents=True)
        source = downloading.Remote(f"{mirror.uri}/{each.filename}", connections)
        if each is gone:
            with pytest.raises(DroppedError):
                downloading.download(each, source, target, meter)
        else:
            downloading.download(each, source, target, meter)
    connections.close()
    assert mirror.connections == 1 and files_in(tmp_path) == [package.deb]


def test_a_broken_download_is_resumed(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    mirror.breaks = [BROKEN, BROKEN]
    assert get(package, mirror, tmp_path) == content()
    assert mirror.ranged == ["", f"bytes={BROKEN}-", f"bytes={2 * BROKEN}-"]
    assert files_in(tmp_path) == [package.deb]


def test_the_next_run_goes_on_where_the_last_attempt_ended(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    mirror.breaks = [1000] * downloading.ATTEMPTS
    with pytest.raises(UserError, match="cannot be fetched from"):
        get(package, mirror, tmp_path)
    assert len(mirror.requests) == downloading.ATTEMPTS and mirror.breaks == []
    assert files_in(tmp_path) == [f"{package.deb}.part"]
    assert get(package, mirror, tmp_path) == content()
    assert mirror.ranged[-1] == f"bytes={1000 * downloading.ATTEMPTS}-"
    assert files_in(tmp_path) == [package.deb]


def test_a_server_without_ranges_sends_the_whole_file_again(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    mirror.breaks, mirror.ranges = [BROKEN], False
    assert get(package, mirror, tmp_path) == content()
    assert mirror.ranged == ["", f"bytes={BROKEN}-"]


def test_parts_of_two_versions_of_a_file_are_not_joined(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    """The first part is of an older file; because of If-Range the server sends the whole new one."""
    mirror.breaks = [BROKEN]
    path = f"/{package.filename}"
    mirror.files[path] = content(7)
    answer = mirror.answer

    def changes(handler: object) -> None:
        answer(handler)  # type: ignore[arg-type]
        mirror.files[path] = content()

    mirror.answer = changes  # type: ignore[method-assign]
    assert get(package, mirror, tmp_path) == content()
    assert mirror.ranged == ["", f"bytes={BROKEN}-"]


@pytest.mark.parametrize("tags", [True, False])
def test_a_wrong_partial_file_is_fetched_again(mirror: Mirror, package: Package, tmp_path: Path, tags: bool) -> None:
    """The partial file belongs to no version on the server; only the digest shows that."""
    mirror.tags = tags
    begin(package, tmp_path, content(7)[:BROKEN])
    assert get(package, mirror, tmp_path) == content()
    assert mirror.ranged == [f"bytes={BROKEN}-", ""]


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        (content()[:BROKEN], [f"bytes={BROKEN}-"]),  # control
        (content(), []),  # complete: the process was killed before the rename
        (content() + b"more", [""]),
        (content(7), [""]),
        (b"", [""]),
    ],
)
def test_the_partial_file_of_a_killed_run_is_completed(
    mirror: Mirror, package: Package, tmp_path: Path, left: bytes, asked: list[str]
) -> None:
    begin(package, tmp_path, left)
    assert get(package, mirror, tmp_path) == content()
    assert mirror.ranged == asked and files_in(tmp_path) == [package.deb]


def test_a_file_shorter_than_the_partial_file_is_refused(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    """The server answers 416, because its file is shorter than the part; its whole file does not match the lock."""
    mirror.files[f"/{package.filename}"] = content()[: BROKEN // 2]
    begin(package, tmp_path, content()[:BROKEN])
    with pytest.raises(UserError, match="does not match the lock and was removed"):
        get(package, mirror, tmp_path)
    assert mirror.ranged[:2] == [f"bytes={BROKEN}-", ""] and files_in(tmp_path) == []


def test_a_file_longer_than_the_pinned_one_is_refused(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    """A range of a file that is not as long as the pinned one is not even read."""
    mirror.files[f"/{package.filename}"] = content() + bytes(50_000_000)
    begin(package, tmp_path, content()[:BROKEN])
    with pytest.raises(UserError, match=f"found more than {package.size} bytes"):
        get(package, mirror, tmp_path)
    assert mirror.ranged == [f"bytes={BROKEN}-", ""] and files_in(tmp_path) == []


def test_redirects_are_followed_to_servers_only(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    elsewhere = f"/now/{package.deb}"
    mirror.files[elsewhere] = mirror.files.pop(f"/{package.filename}")
    mirror.moved[f"/{package.filename}"] = elsewhere
    assert get(package, mirror, tmp_path / "one") == content()
    local = tmp_path / "local"
    local.write_bytes(content())
    for target in (f"file://{local}", f"/{package.filename}"):
        mirror.moved[f"/{package.filename}"] = target
        with pytest.raises(UserError, match="HTTP status 302"):
            get(package, mirror, tmp_path / "two")
    assert files_in(tmp_path / "two") == []


def through(
    settings: dict[str, str], package: Package, cache: Path, main: str = "http://mirror.invalid/debian"
) -> bytes:
    sources = Sources(main, "", "test", settings)
    return fetch([package], cache_dir=cache, sources=lambda: sources)[package].read_bytes()


def test_proxies(mirror: Mirror, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt's proxy, then the environment's, with and without a login; no_proxy and DIRECT go past them."""
    whole = f"http://mirror.invalid/debian/{package.filename}"
    mirror.files[whole] = content()
    proxy = mirror.uri.removeprefix("http://")
    assert through({"Acquire::http::Proxy": mirror.uri}, package, tmp_path / "apt") == content()
    assert mirror.requests == [(whole, "")] and mirror.logins == []
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@{proxy}")
    assert through({}, package, tmp_path / "environment") == content()
    assert mirror.logins == [f"Basic {base64.b64encode(b'me:p@ss').decode()}"]
    monkeypatch.setenv("http_proxy", proxy)  # without a scheme, as curl takes it
    assert through({}, package, tmp_path / "plain") == content()
    # The control: nothing listens at this proxy, so what comes did not go through it.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="Connection refused"):
        through({}, package, tmp_path / "none", mirror.uri)
    assert through({"Acquire::http::Proxy": "DIRECT"}, package, tmp_path / "direct", mirror.uri) == content()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert through({}, package, tmp_path / "past", mirror.uri) == content()


def test_the_system_s_certificate_store_is_used(
    mirror: Mirror, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL's own variable stands for the system's store here."""
    certificate = Certificate(tmp_path)
    uri = mirror.encrypt(certificate.certificate_file, certificate.key_file)
    with pytest.raises(UserError, match="certificate verify failed"):
        through({}, package, tmp_path / "cache", uri)
    assert mirror.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate_file))
    assert through({}, package, tmp_path / "cache", uri) == content()


PROGRAM = """
import sys
from pathlib import Path
from sevsnp.packages.fetch import fetch
from sevsnp.packages.lock import Package
from sevsnp.packages.sources import Sources
uri, cache, size, digest = sys.argv[1:]
package = Package("tool", "1.0", "amd64", "debian", "pool/main/tool_1.0_amd64.deb", int(size), digest)
fetch([package], cache_dir=Path(cache), sources=lambda: Sources(uri, "", "test"))
"""


def run_fetch(package: Package, mirror: Mirror, cache: Path) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-c", PROGRAM, mirror.uri, str(cache), str(package.size), package.sha256]
    return subprocess.Popen(ends_with_us(*words), cwd=Path(__file__).parents[2], start_new_session=True)


def test_a_download_is_resumed_after_its_process_was_killed(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    mirror.pauses_at = BROKEN
    process = run_fetch(package, mirror, tmp_path)
    assert mirror.paused.wait(NET)
    part = cached_path(package, tmp_path).with_name(f"{package.deb}.part")
    wait_until(lambda: part.exists() and part.stat().st_size == BROKEN)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(NET)
    assert files_in(tmp_path) == [part.name]
    mirror.pauses_at = 0
    assert get(package, mirror, tmp_path) == content()
    assert mirror.ranged == ["", f"bytes={BROKEN}-"] and files_in(tmp_path) == [package.deb]


def test_two_runs_fetch_a_file_once(mirror: Mirror, package: Package, tmp_path: Path) -> None:
    mirror.pauses_at = BROKEN
    process = run_fetch(package, mirror, tmp_path)
    assert mirror.paused.wait(NET)
    got: list[bytes] = []
    second = threading.Thread(target=lambda: got.append(get(package, mirror, tmp_path)), daemon=True)
    second.start()
    mirror.go_on.set()
    second.join(NET)
    assert process.wait(NET) == 0 and got == [content()]
    assert mirror.ranged == [""]
