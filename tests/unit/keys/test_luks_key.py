# SPDX-License-Identifier: Apache-2.0
"""Disk keys: their sources, keys that are refused, and the storage of keys and records, which is private."""

import os
import pty
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record
from tests.support.waiting import NET

UUID = "0f2a6c1e-5b1f-4f0c-9d3c-6a7b8c9d0e1f"
CANARY = b"\0canary\nkey \xff"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing that an earlier test gave is remembered."""
    luks_key._known.clear()
    yield
    luks_key._known.clear()


def handed_over(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    monkeypatch.setenv(luks_key.DESCRIPTOR_VARIABLE, str(reader))


def key_file(tmp_path: Path, data: bytes = CANARY, mode: int = 0o600) -> Path:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_key_in_the_descriptor_goes_before_a_file_and_is_read_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not luks_key.was_given()
    assert luks_key.given("") is None
    handed_over(monkeypatch, CANARY)
    descriptor = int(os.environ[luks_key.DESCRIPTOR_VARIABLE])
    assert luks_key.was_given()
    for _ in range(2):
        key = luks_key.given(str(key_file(tmp_path, b"other")))
        assert key and key.data == CANARY
    assert luks_key.was_given() and luks_key.DESCRIPTOR_VARIABLE not in os.environ
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("value", ["", "x", "-1", "987654", "3.0"])
def test_a_wrong_descriptor_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(luks_key.DESCRIPTOR_VARIABLE, value)
    if not value:
        assert luks_key.given("") is None
        return
    with pytest.raises(UserError, match=luks_key.DESCRIPTOR_VARIABLE):
        luks_key.given("")


def test_all_bytes_of_a_file_are_the_key(tmp_path: Path) -> None:
    key = luks_key.given(str(key_file(tmp_path)))
    assert key and key.data == CANARY


@pytest.mark.parametrize("data", [b"", b"x" * 4097])
def test_a_key_of_an_impossible_length_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="4096"):
        luks_key.read_key_file(key_file(tmp_path, data))
    handed_over(monkeypatch, data)
    with pytest.raises(UserError, match="4096"):
        luks_key.given("")
    assert luks_key.read_key_file(key_file(tmp_path, b"x" * 4096)) == b"x" * 4096


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    assert luks_key.read_key_file(key_file(tmp_path)) == CANARY
    with pytest.raises(UserError, match=r"expected 0600.*\n.*chmod 600"):
        luks_key.read_key_file(key_file(tmp_path, mode=mode))


def test_a_link_a_directory_a_pipe_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(key_file(tmp_path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, said in (
        (link, "symbolic link"),
        (tmp_path, "expected a file"),
        (tmp_path / "pipe", "expected a file"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(UserError, match=said):
            luks_key.read_key_file(path)


def test_a_file_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = key_file(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(UserError, match="belongs to"):
        luks_key.read_key_file(path)


def test_without_a_terminal_the_question_for_a_key_is_an_error() -> None:
    script = "from sevsnp.keys import luks_key; luks_key.given('-')"
    done = subprocess.run(
        [sys.executable, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert "no terminal to ask on" in done.stderr


@pytest.mark.parametrize(
    ("typed", "calls", "expected"),
    [
        (["sesame"], "given('-')", "sesame"),
        (["sesame"], "given('-'); given('-')", "sesame"),
        (["sesame", "sesame"], "given('-', twice=True); given('-')", "sesame"),
        # Asked once whether the volume is that key's; then, for a new one, whether it was meant.
        (["sesame", "sesame"], "given('-'); given('-', twice=True)", "sesame"),
        (["sesame", "two"], "given('-', twice=True)", "the two entries differ"),
        ([""], "given('-')", "empty"),
    ],
)
def test_a_typed_key(typed: list[str], calls: str, expected: str) -> None:
    script = f"from sevsnp.keys.luks_key import given; print('KEY', ([{calls.replace(';', ',')}])[-1].data.decode())"
    master, slave = pty.openpty()
    shown = b""

    def read() -> None:
        nonlocal shown
        while True:
            try:
                piece = os.read(master, 1024)
            except OSError:
                return
            if not piece:
                return
            shown += piece
            # Each prompt ends in a colon and a blank; an answer before that would be thrown away.
            if piece.endswith(b": ") and typed:
                os.write(master, typed.pop(0).encode() + b"\n")

    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    thread = threading.Thread(target=read)
    thread.start()
    process.wait(timeout=60)
    thread.join(NET)
    os.close(master)
    assert expected in shown.decode()
    assert typed == []
    assert (f"KEY {expected}" in shown.decode()) == (process.returncode == 0)
    # It is on the terminal where the test printed it, and nowhere else.
    assert shown.count(b"sesame") == (process.returncode == 0)


def test_a_generated_key_is_private_whole_and_never_overwritten(tmp_path: Path) -> None:
    made = luks_key.make_key(tmp_path, UUID)
    path = luks_key.key_path(tmp_path, UUID)
    assert len(made.data) == luks_key.MADE_BYTES and path.read_bytes() == made.data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert luks_key.read_made_key(tmp_path, UUID).data == made.data
    with pytest.raises(FileExistsError):
        luks_key.make_key(tmp_path, UUID)
    assert path.read_bytes() == made.data
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing half-written is left"
    path.chmod(0o640)
    with pytest.raises(UserError, match="expected 0600"):
        luks_key.read_made_key(tmp_path, UUID)


def test_two_made_keys_differ(tmp_path: Path) -> None:
    other = UUID.replace("0", "1")
    assert luks_key.make_key(tmp_path, UUID).data != luks_key.make_key(tmp_path, other).data


def test_a_key_is_not_shown(tmp_path: Path) -> None:
    made = luks_key.make_key(tmp_path, UUID)
    assert repr(made.data) not in repr(made) and made.data.hex() not in f"{made}"


def test_the_missing_key_of_a_volume_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{UUID}\.key: no such file[^\n]*\n.*setup_luks"):
        luks_key.read_made_key(tmp_path, UUID)


def test_a_record_is_stored_and_updated(tmp_path: Path) -> None:
    luks_key.write_record(tmp_path, UUID, Record("made"))
    assert luks_key.read_record(tmp_path, UUID) == Record("made", 0, False)
    assert luks_key.update_record(tmp_path, UUID, generation=7, exposed=True) == Record("made", 7, True)
    assert luks_key.read_record(tmp_path, UUID) == Record("made", 7, True)
    path = tmp_path / "volumes" / f"{UUID}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "key": "made"}',
        '{"format": 1}',
        '{"format": 1, "key": "other"}',
        '{"format": 1, "key": "made", "generation": -1}',
        '{"format": 1, "key": "made", "generation": "1"}',
        '{"format": 1, "key": "made", "generation": true}',
        '{"format": 1, "key": "made", "exposed": 0}',
        '{"format": 1, "key": "made", "more": 0}',
        '{"format": 1, "key": ["made"]}',
        "\xff",
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    luks_key.write_record(tmp_path, UUID, Record("given"))
    (tmp_path / "volumes" / f"{UUID}.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="not the record of a volume"):
        luks_key.read_record(tmp_path, UUID)


def test_an_unknown_volume_and_a_malformed_uuid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not made here"):
        luks_key.read_record(tmp_path, UUID)
    for name in ("../../etc/passwd", UUID.upper().replace("0", "A"), "", UUID + "\n"):
        with pytest.raises(UserError, match="expected a UUID"):
            luks_key.key_path(tmp_path, name)


def test_a_directory_that_others_may_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir(mode=0o755)
    with pytest.raises(UserError, match="chmod 700"):
        luks_key.make_key(tmp_path, UUID)
