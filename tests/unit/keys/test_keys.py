# SPDX-License-Identifier: Apache-2.0
"""Keys: made once, readable by their owner only, never overwritten."""

import socket
import ssl
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.keys.pairs import certificate_der, ensure_keys
from tests.support.waiting import NET


def test_keys_are_made_once_and_are_private(tmp_path: Path) -> None:
    config = tmp_path / "deep" / "config"
    keys = ensure_keys(config)
    files = [keys.user_private, keys.user_public, keys.owner_private, keys.owner_certificate]
    before = [file.read_bytes() for file in files]
    assert ensure_keys(config) == keys and [file.read_bytes() for file in files] == before
    assert stat.S_IMODE(config.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o644, 0o600, 0o644]
    assert sorted(config.iterdir()) == sorted(files)
    assert ensure_keys(tmp_path / "other").owner_private.read_bytes() != keys.owner_private.read_bytes()


def test_missing_public_keys_are_made_again_from_the_private_ones(tmp_path: Path) -> None:
    keys = ensure_keys(tmp_path / "c")
    certificate, public = keys.owner_certificate.read_bytes(), keys.user_public.read_bytes()
    keys.owner_certificate.unlink()
    keys.user_public.unlink()
    ensure_keys(tmp_path / "c")
    assert (keys.owner_certificate.read_bytes(), keys.user_public.read_bytes()) == (certificate, public)


def test_the_certificate_fits_the_command_line(tmp_path: Path) -> None:
    import base64

    text = base64.b64encode(certificate_der(ensure_keys(tmp_path / "c").owner_certificate)).decode()
    assert len(text) == 268 and "=" not in text


def test_concurrent_processes_get_the_same_keys(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda _: ensure_keys(tmp_path / "c").owner_certificate.read_bytes(), range(16)))
    assert len(set(seen)) == 1


@pytest.mark.parametrize("name", ["user_private", "owner_private"])
def test_a_key_that_others_may_read_or_that_is_a_link_is_refused(tmp_path: Path, name: str) -> None:
    keys = ensure_keys(tmp_path / "c")
    key: Path = getattr(keys, name)
    key.chmod(0o640)
    with pytest.raises(UserError, match=r"mode 0640, expected 0600") as caught:
        ensure_keys(tmp_path / "c")
    assert "chmod 600" in caught.value.hint
    key.chmod(0o600)
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"):
        ensure_keys(tmp_path / "c")
    key.unlink()
    key.write_text("no key")
    key.chmod(0o600)
    with pytest.raises(UserError, match="expected an Ed25519 private key"):
        ensure_keys(tmp_path / "c")
    key.unlink()
    with pytest.raises(UserError, match="does not belong to"):  # a new private key beside the old public half
        ensure_keys(tmp_path / "c")


def test_a_directory_that_others_may_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c").chmod(0o755)
    with pytest.raises(UserError, match="mode 0755, expected 0700"):
        ensure_keys(tmp_path / "c")
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match="expected a directory"):
        ensure_keys(tmp_path / "f")


def connect(server_trusts: Path, client: Path) -> bool:
    """Whether a TLS 1.3 server that trusts one owner's certificate lets a client with the keys in ``client`` in."""
    keys, trusted = ensure_keys(client), ensure_keys(server_trusts).owner_certificate
    own = ensure_keys(server_trusts.parent / "server")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    server.load_cert_chain(own.owner_certificate, own.owner_private)
    server.load_verify_locations(trusted)
    server.verify_mode = ssl.CERT_REQUIRED
    user = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    user.check_hostname = False
    user.verify_mode = ssl.CERT_NONE
    user.load_cert_chain(keys.owner_certificate, keys.owner_private)
    left, right = socket.socketpair()
    accepted = []

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as stream:
                stream.sendall(b"x")
                accepted.append(True)
        except ssl.SSLError:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with user.wrap_socket(right) as stream:
            stream.recv(1)
    except OSError:
        pass
    thread.join(NET)
    return bool(accepted)


def test_only_the_owner_authenticates(tmp_path: Path) -> None:
    assert connect(tmp_path / "owner", tmp_path / "owner")
    assert not connect(tmp_path / "owner", tmp_path / "other")
