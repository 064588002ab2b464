# SPDX-License-Identifier: Apache-2.0
"""Hints of attest_luks: which guest may have a key; the guest's own agent listens at a port of this machine."""

import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sevsnp.guests import attesting
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record, read_record
from sevsnp.keys.paths import Keys
from sevsnp.owner.luks import check_release
from tests.support.evidence import ROOT, root
from tests.support.key_guest import key_guest
from tests.support.luks_owner import KEY, UUID, attest, config_dir, header, keep, keys, waiting
from tests.support.luks_volume import make_header
from tests.support.table import Told, remedies

__all__ = ["config_dir", "header", "keys"]  # fixtures


def key_file(path: Path, key: bytes) -> str:
    path.write_bytes(key)
    path.chmod(0o600)
    return str(path)


@remedies(
    "sevsnp.owner.luks",
    "give the key: LUKS_KEY=… {}",
    "give the right key; no key was sent",
    "if the guest is emulated: {} PLATFORM=emulated — for SEV-SNP make a volume with another key: {} PLATFORM=snp",
)
def test_missing_wrong_and_exposed_keys(told: Told, config_dir: Path, keys: Keys, header: Path, tmp_path: Path) -> None:
    keep(config_dir, Record("given"))
    with waiting(keys, tmp_path, header) as guest:
        try_it = partial(attest, config_dir, header, guest, tmp_path / "out")
        told.hint(try_it)
        told.hint(lambda: try_it(key_file=key_file(tmp_path / "wrong", b"another key")))
        assert guest.waiting
        try_it(key_file=key_file(tmp_path / "right", KEY), asked={"PLATFORM": "emulated"})
        assert guest.received == [(KEY, 0)]
    assert read_record(config_dir, UUID).exposed
    own = key_file(tmp_path / "right", KEY)
    with waiting(keys, tmp_path, header) as guest:
        try_it = partial(attest, config_dir, header, guest, tmp_path / "out", key_file=own)
        hint = told.hint(lambda: try_it(platform="snp"))
        assert "./doitw attest_luks PLATFORM=emulated" in hint and guest.waiting
        assert hint.endswith(": ./doitw setup_luks PLATFORM=snp")
        try_it(asked={"PLATFORM": "emulated"})  # which takes the emulated VM config, too
        assert len(guest.received) == 1
    check_release("amd", Record("made"), emulated_asked=False)  # that of a new volume


@remedies(
    "sevsnp.owner.attestation",
    "an emulated guest is attested with its own VM config: VM_CONFIG=….emulated.toml, or PLATFORM=emulated",
)
def test_the_vm_config_of_an_emulated_guest(
    told: Told, config_dir: Path, keys: Keys, header: Path, tmp_path: Path
) -> None:
    keep(config_dir, Record("made"))
    with waiting(keys, tmp_path, header) as guest:
        told.hint(lambda: attest(config_dir, header, guest, tmp_path / "out", platform="snp"))
    with waiting(keys, tmp_path, header) as guest:
        attest(config_dir, header, guest, tmp_path / "out", platform="emulated")


@remedies("sevsnp.owner.key_release", "read its console on the machine that runs it: ./doitw logs")
def test_a_guest_that_refuses(
    told: Told, clone: Path, config_dir: Path, keys: Keys, header: Path, tmp_path: Path
) -> None:
    keep(config_dir, Record("made"))
    state = clone / "build" / "run" / "luks"
    state.mkdir(parents=True, exist_ok=True)
    (state / "serial.log").write_text("why it refuses\n")
    refused = {"unlock": lambda *_: {"error": "no"}}
    with waiting(keys, tmp_path, header, **refused) as guest:
        hint = told.hint(lambda: attest(config_dir, header, guest, tmp_path / "out"))
    assert "why it refuses" in told.shell(hint.rpartition(": ")[2]).stdout


@contextlib.contextmanager
def sshd() -> Iterator[int]:
    """What says that it is one, at a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


@remedies(
    "sevsnp.guests.attesting",
    "the guest gives evidence only while it waits for its key: boot it again",
    "boot the guest again",
)
def test_a_guest_that_is_already_unlocked(
    told: Told, config_dir: Path, keys: Keys, header: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "runs" / "luks"
    state.parent.mkdir()
    keep(config_dir, Record("made"))
    with waiting(keys, tmp_path, header) as guest:
        attest(config_dir, header, guest, state)  # for its VM config and ssh_config
    other = tmp_path / "other.bin"
    other.write_bytes(make_header(KEY, 2))
    luks_key.write_record(config_dir, "00000000-0000-4000-8000-000000000002", Record("given"))
    own = key_file(tmp_path / "own", KEY)

    def again(port: int, of: Path = header, ssh_port: int = 1) -> None:
        named: dict[str, Any] = {
            "vm_config": state / "vm-config.toml", "header": of, "config_dir": config_dir, "key_file": own,
            "emulated_root": root(), "user": "user", "template": ROOT / "templates" / "ssh_config.j2",
        }  # fmt: skip
        attesting.luks(
            name="luks", runs=tmp_path / "runs", host="127.0.0.1", port=port, ssh_port=ssh_port,
            asked={"PLATFORM": "emulated"}, **named,
        )  # fmt: skip

    def booted(of: Path, ssh_port: int) -> None:
        with key_guest(keys, tmp_path, hashlib.sha256(of.read_bytes()).digest()) as guest:
            again(guest.port, of, ssh_port)
            assert guest.received

    with sshd() as ssh_port:
        (state / "evidence.emulated.json").unlink()
        told.hint(lambda: again(1, ssh_port=ssh_port))
        booted(header, ssh_port)
        told.hint(lambda: again(1, other, ssh_port))
        booted(other, ssh_port)
    assert re.search(r"log in with: ssh -F .* \(or \./doitw ssh NAME=luks\)", capsys.readouterr().out)


@remedies("sevsnp.keys.luks_key", "give LUKS_KEY, or a file: LUKS_KEY_FILE=…")
def test_no_terminal_to_ask_on(told: Told, tmp_path: Path) -> None:
    told.instead(lambda: luks_key.given("-"), lambda: luks_key.given(key_file(tmp_path / "key", KEY)))


@remedies("sevsnp.keys.luks_key", "run the command again")
def test_a_key_that_was_mistyped(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["one", "two", "one", "one"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(typed))  # who types
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    told.instead(lambda: luks_key.given("-", twice=True), lambda: luks_key.given("-", twice=True))
