# SPDX-License-Identifier: Apache-2.0
"""A registry that lies, stalls or redirects costs one line and seconds: no wrong byte is used, no password sent."""

import hashlib
import random
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import requests
import zstandard

from sevsnp.store.entries import Blob
from sevsnp.store.oci_blob import Layer
from sevsnp.store.registry import MANIFEST_TYPE, Registry, Tampered, Unavailable, parse_reference
from tests.support import hostile_registry as hostile
from tests.support.hostile_registry import CONTENT, DOCUMENT, KEY, Hostile, Misbehaviour, digest, raw, says
from tests.support.registry_logins import basic, write_login
from tests.support.waiting import NET

# The client's patience where that is what ends it; elsewhere it has more than any machine needs.
TIMEOUT = 1.0
USER, PASSWORD = "builder", "correct-horse-battery"
SECRET = basic(USER, PASSWORD)
# A host that nobody has (RFC 5737): what would be sent there is refused before it is tried.
ELSEWHERE = "192.0.2.1"


@pytest.fixture(autouse=True)
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker"


def client(server: Hostile) -> Registry:
    slow = any(misbehaviour in hostile.SLOW for misbehaviour in server.misbehave.values())
    return Registry(parse_reference(f"oci://{server.host}/cache"), timeout=TIMEOUT if slow else NET)


def pull(server: Hostile, target: Path) -> bytes | None:
    """Read the entry and its blob, as a build does."""
    there = client(server)
    document = there.entry(KEY)
    if document is not None:
        there.fetch(server.blob, target)
    return document


def push(server: Hostile, target: Path) -> None:
    content = random.Random(5).randbytes(16 << 20)
    target.with_name("source").write_bytes(content)
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
    client(server).push(KEY, DOCUMENT, [(blob, target.with_name("source"))])


def refused(
    action: Callable[[Hostile, Path], object], server: Hostile, target: Path, kind: type[Exception], words: str
) -> str:
    with pytest.raises(kind, match=words) as caught:
        action(server, target)
    assert server.outlasted == [], "borne to its end"
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400
    assert SECRET not in message and PASSWORD not in message
    assert not target.exists()
    return message


def test_control_an_honest_registry_works(tmp_path: Path) -> None:
    with Hostile() as server:
        assert pull(server, tmp_path / "back") == DOCUMENT
        assert (tmp_path / "back").read_bytes() == CONTENT
        push(server, tmp_path / "back")
        assert [method for method, _, _ in server.seen].count("PUT") == 3
        # Two clients, and one connection each.
        assert len(server.connections) == 2


LOGIN = says(401, Www_Authenticate='Basic realm="x"')
ANSWERS: dict[str, tuple[str, Misbehaviour, type[Exception], str]] = {
    "endless manifest": ("manifest", hostile.FAST_BODY, Tampered, "more than 4194304 bytes"),
    "endless header": ("manifest", hostile.ENDLESS_HEADER, Unavailable, "gave up|in time"),
    "endless continue": ("manifest", hostile.ENDLESS_CONTINUE, Unavailable, "gave up|in time"),
    "slow manifest": ("manifest", hostile.SLOW_BODY, Unavailable, "gave up|in time"),
    "slow chunk": ("manifest", hostile.SLOW_CHUNK, Unavailable, "gave up|in time"),
    "silence": ("manifest", hostile.stalls, Unavailable, "in time|gave up"),
    "web page": ("manifest", says(200, b"<html>Welcome</html>"), Tampered, "not the"),
    "nested": ("manifest", says(200, b"[" * 1000000), Tampered, "not the"),
    "another artifact": ("manifest", says(200, b'{"schemaVersion":2,"artifactType":"x"}'), Tampered, "not the"),
    "other digest": ("manifest", says(200, b"{}", Docker_Content_Digest="sha256:0"), Tampered, "differs from"),
    "cut off": ("manifest", raw(hostile.OK + b"Content-Length: 100\r\n\r\n{"), Unavailable, "invalid HTTP"),
    "not HTTP": ("manifest", raw(b"220 ready\r\n"), Unavailable, "invalid HTTP"),
    "closed": ("manifest", raw(b""), Unavailable, "invalid HTTP"),
    "busy": ("manifest", says(429, b'{"errors":[{"message":"slow\\u001b[31m\\ndown"}]}'), Unavailable, r"429 .*: slow"),
    "long words": ("manifest", says(500, b'{"errors":[{"message":"%s"}]}' % (b"x" * 9999)), Unavailable, "500 .*x…$"),
    "endless words": ("manifest", hostile.SLOW_WORDS, Unavailable, "500"),
    "gateway": ("manifest", says(503, b"<html>"), Unavailable, "503 Service Unavailable$"),
    "redirect loop": ("manifest", says(302, Location=f"/v2/cache/manifests/{KEY}"), Unavailable, "more than 5 times"),
    "to a file": ("manifest", says(307, Location="file:///etc/passwd"), Unavailable, "redirects us to file://$"),
    "to http": ("manifest", says(307, Location=f"http://{ELSEWHERE}/"), Unavailable, rf"us to http://{ELSEWHERE}$"),
    "to nowhere": ("manifest", says(307, Location="http://[::1/"), Unavailable, "HTTP|us to"),
    "to a user": ("manifest", says(307, Location=f"https://a:b@{ELSEWHERE}/"), Unavailable, "redirects us to"),
    "login loop": ("manifest", LOGIN, Unavailable, "refuses the login"),
    "no challenge": ("manifest", says(401), Unavailable, "refuses the login"),
    "odd challenge": ("manifest", says(401, Www_Authenticate="Bearer x"), Unavailable, "refuses the login"),
    "token over http": (
        "manifest",
        says(401, Www_Authenticate=f'Bearer realm="http://{ELSEWHERE}/",service="s"'),
        Unavailable,
        rf"its logins to http://{ELSEWHERE}$",
    ),
    "changed document": ("document", says(200, DOCUMENT.replace(b"tests", b"texts")), Tampered, "its document"),
    "long document": ("document", says(200, DOCUMENT + b" "), Tampered, "more than"),
    "endless document": ("document", hostile.FAST_BODY, Tampered, "more than"),
    "endless blob": ("blob", hostile.FAST_BODY, Tampered, "decompressed|more than"),
    "slow blob": ("blob", hostile.hesitates, Unavailable, "gave up|in time"),
    "slow chunk of a blob": ("blob", hostile.SLOW_CHUNK, Unavailable, "gave up|in time"),
    "no blob": ("blob", says(404), Unavailable, "404 Not Found"),
    "login for the blob": ("blob", LOGIN, Unavailable, "refuses the login"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_answers(name: str, docker: Path, tmp_path: Path) -> None:
    kind, misbehaviour, error, words = ANSWERS[name]
    with Hostile({kind: misbehaviour}) as server:
        write_login(docker, server.host, USER, PASSWORD)
        refused(pull, server, tmp_path / "back", error, words)


def test_control_the_time_out_of_requests_does_not_end_a_slow_answer() -> None:
    """Control for the slow answers: the time-out that requests itself has is not reached."""
    with Hostile({"manifest": hostile.SLOW_BODY}) as server:
        response = requests.get(f"http://{server.host}/v2/cache/manifests/{KEY}", timeout=TIMEOUT, stream=True)
        for _ in range(int(2 * TIMEOUT / 0.05)):  # a byte each 0.05 s, at the most
            assert response.raw.read1(1)
        response.close()


UPLOADS: dict[str, tuple[str, Misbehaviour, type[Exception], str]] = {
    "nowhere": ("start", says(202), Unavailable, "redirects uploads to no address"),
    "elsewhere": ("start", says(202, Location=f"https://{ELSEWHERE}/x"), Unavailable, "redirects uploads to https://192"),
    "other port": ("start", says(202, Location="http://127.0.0.1:1/x"), Unavailable, "redirects uploads to http://127"),
    "full": ("start", says(507), Unavailable, "uploads with 507"),
    "redirected": ("upload", says(307, Location="/v2/elsewhere"), Unavailable, "uploads with 307"),
    "not read": ("upload", hostile.stalls, Unavailable, "in time|gave up"),
    "too large": ("upload", says(413), Unavailable, "uploads with 413|Connection reset|Broken pipe"),
    "login": ("upload", LOGIN, Unavailable, "refuses the login|Connection reset|Broken pipe"),
    "no such repository": ("start", says(404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}'), Unavailable, "404.*NAME_UNK"),
}  # fmt: skip


@pytest.mark.parametrize("name", UPLOADS)
def test_hostile_uploads(name: str, docker: Path, tmp_path: Path) -> None:
    kind, misbehaviour, error, words = UPLOADS[name]
    with Hostile({"manifest": says(404), kind: misbehaviour}) as server:
        write_login(docker, server.host, USER, PASSWORD)
        refused(push, server, tmp_path / "back", error, words)
        # The manifest is what makes an entry: it was not sent.
        assert not any(method == "PUT" and "/manifests/" in path for method, path, _ in server.seen)


def zstd(content: bytes, **parameters: int) -> bytes:
    packed = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(3, write_content_size=False, **parameters)
    ).compressobj()
    return packed.compress(content) + packed.flush()


def test_decompression_stops_at_the_first_byte_too_many(tmp_path: Path) -> None:
    bomb = zstd(bytes(1 << 30))
    assert len(bomb) < 1 << 17
    # The control arm: it is a gigabyte for whoever asks.
    with zstandard.ZstdDecompressor().stream_reader(bomb) as reader:
        assert sum(map(len, iter(lambda: reader.read(1 << 20), b""))) == 1 << 30
    content = bytes(len(bomb))  # so that the layer's size is not what gives it away
    with Hostile(content=content, stored=bomb) as server:
        refused(pull, server, tmp_path / "back", Tampered, f"more than its {len(content)} bytes")


LAYERS: dict[str, tuple[Callable[[bytes], bytes], bool, str]] = {
    # what becomes of the layer; whether the manifest agrees; what is said
    "a byte": (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], False, "SHA-256|decompressed"),
    "shorter": (lambda data: data[:-1], False, "instead of"),
    "longer": (lambda data: data + b"\0", False, "more than its"),
    "the content in other words": (lambda data: zstd(CONTENT), False, "instead of"),
    "other content": (lambda data: zstd(CONTENT[:-1] + b"x"), True, "found SHA-256"),
    "less content": (lambda data: zstd(CONTENT[:-1]), True, "bytes instead of"),
    "not zstd": (lambda data: b"x" * 100, True, "decompressed"),
    "greedy window": (lambda data: zstd(CONTENT, window_log=27), True, "decompressed.*memory"),
    "no frame": (lambda data: b"\x50\x2a\x4d\x18\x04\0\0\0abcd", True, "0 bytes instead"),
    "nothing": (lambda data: b"", True, "bytes instead of"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_other_content_are_refused(name: str, tmp_path: Path) -> None:
    change, agreed, words = LAYERS[name]
    with Hostile() as server:
        server.stored = change(server.stored)
        if agreed:
            server.layer = Layer(digest(server.stored), len(server.stored))
        refused(pull, server, tmp_path / "back", Tampered, words)


def test_the_compressed_bytes_of_a_layer_are_checked_too(tmp_path: Path) -> None:
    """The content is right, but its frame has another window size: its bytes do not have the manifest's digest."""
    with Hostile(stored=zstd(CONTENT)) as server:
        pull(server, tmp_path / "back")
        (tmp_path / "back").unlink()
        server.stored = server.stored[:5] + bytes([server.stored[5] + 1]) + server.stored[6:]
        assert zstandard.ZstdDecompressor().decompressobj().decompress(server.stored) == CONTENT
        refused(pull, server, tmp_path / "back", Tampered, "layer sha256:.*: found SHA-256")


def test_a_layer_of_an_impossible_size_is_refused(tmp_path: Path) -> None:
    with Hostile() as server:
        assert server.layer is not None
        server.layer = replace(server.layer, size=len(CONTENT) * 2)
        refused(pull, server, tmp_path / "back", Tampered, "not the")


def test_the_login_is_not_sent_to_the_target_of_a_redirect(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registries redirect to the server that has their blobs; the password is for the registry alone."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    def wants_login(it: hostile.Handler) -> None:
        known = it.headers.get("Authorization") == f"Basic {SECRET}"
        it.close_connection = False
        if known:
            it.reply(307, headers={"Location": f"http://{other.host}{it.path}"})
        else:
            it.reply(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    with Hostile() as other, Hostile(dict.fromkeys(("manifest", "document", "blob"), wants_login)) as server:
        write_login(docker, server.host, USER, PASSWORD)
        assert pull(server, tmp_path / "back") == DOCUMENT
        assert (tmp_path / "back").read_bytes() == CONTENT
        assert {login for _, _, login in server.seen} == {"", f"Basic {SECRET}"}
        assert [login for _, _, login in other.seen] == ["", "", ""]
        # The control arm: other clients take it along, or bring what ~/.netrc has.
        url = f"http://{server.host}/v2/cache/manifests/{KEY}"
        headers = {"Accept": MANIFEST_TYPE, "Authorization": f"Basic {SECRET}"}
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=NET).close()
        requests.get(url, timeout=NET).close()
        assert [login for _, _, login in other.seen[3:]] == [f"Basic {SECRET}"] * 2


def test_the_body_of_a_redirect_is_not_read(tmp_path: Path) -> None:
    endless = hostile.drips(b"HTTP/1.1 307 x\r\nLocation: /v2/cache/blobs/x\r\n\r\n", bytes(1 << 16), 0)
    with Hostile({"manifest": endless}) as server:
        # What is at the other end is no manifest, and that is found out while the body still comes.
        refused(pull, server, tmp_path / "back", Tampered, "not the")


def test_an_endless_or_malformed_token_is_refused(docker: Path, tmp_path: Path) -> None:
    with Hostile({"token": hostile.FAST_BODY}) as server:
        realm = f'Bearer realm="http://{server.host}/token",service="s",scope="repository:cache:pull"'
        server.misbehave["manifest"] = says(401, Www_Authenticate=realm)
        write_login(docker, server.host, USER, PASSWORD)
        refused(pull, server, tmp_path / "back", Tampered, "more than 1048576 bytes")
        # A token that would be two headers, or none at all.
        for token in (b'{"token":"a\\r\\nX: b"}', b"[]", b"<html>", b'{"token":{}}'):
            server.misbehave["token"] = says(200, token)
            refused(pull, server, tmp_path / "back", Unavailable, "refuses the login")


def test_no_proxy_is_used_for_a_registry_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hostile() as server, Hostile(dict.fromkeys(("manifest", "document", "blob"), says(502))) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{proxy.host}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert pull(server, tmp_path / "back") == DOCUMENT
        assert proxy.seen == []
        assert requests.get(f"http://{server.host}/v2/cache/manifests/{KEY}", timeout=NET).status_code == 502


def test_a_request_is_repeated_after_one_failure(tmp_path: Path) -> None:
    with Hostile() as server:

        def once(it: hostile.Handler) -> None:
            del server.misbehave["manifest"]
            it.reply(503)

        server.misbehave["manifest"] = once
        assert pull(server, tmp_path / "back") == DOCUMENT


def test_a_transfer_with_short_pauses_is_not_ended(tmp_path: Path) -> None:
    """Pauses shorter than the time-out are allowed if enough bytes come between them."""
    timeout = 2 * TIMEOUT
    with Hostile(content=random.Random(6).randbytes(1 << 20)) as server:

        def uneven(it: hostile.Handler) -> None:
            it.wfile.write(hostile.OK + b"Content-Length: %d\r\n\r\n" % len(server.stored))
            # Less than the time-out each, and more than the time-out in all.
            for place in range(0, len(server.stored), 1 << 18):
                it.wfile.write(server.stored[place : place + (1 << 18)])
                time.sleep(0.3 * timeout)

        server.misbehave["blob"] = uneven
        there = Registry(parse_reference(f"oci://{server.host}/cache"), timeout=timeout)
        assert there.entry(KEY) == DOCUMENT
        there.fetch(server.blob, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == server.content


def test_a_login_that_expires_during_a_push_is_renewed(docker: Path, tmp_path: Path) -> None:
    """The body was sent already: it is sent again, from its beginning."""
    bodies: list[bytes] = []

    def wants_login(it: hostile.Handler) -> None:
        body = it.rfile.read(int(it.headers["Content-Length"]))
        known = it.headers.get("Authorization") == f"Basic {SECRET}"
        bodies.append(body)
        it.reply(201 if known else 401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    with Hostile({"manifest": says(404), "upload": wants_login}) as server:
        write_login(docker, server.host, USER, PASSWORD)
        push(server, tmp_path / "back")
    assert len(bodies) == 4 and len(bodies[0]) > 16 << 20
    assert bodies[0] == bodies[1]
