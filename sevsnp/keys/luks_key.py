# SPDX-License-Identifier: Apache-2.0
"""Disk keys on the owner's machine: given keys, made keys and their files, and a record of each volume.

A key is bytes in this process's memory, a file of the user's own, or a file in CONFIG_DIR/volumes. It is never a word
of a command line, an environment variable of a child process, a line of a log, or a value that doit stores. The kernel
makes no core dump of a process that has a key (sevsnp.keys.taken_key).
"""

import fcntl
import getpass
import json
import os
import re
import secrets
import stat
import sys
import threading
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from sevsnp.errors import UserError
from sevsnp.keys import taken_key
from sevsnp.keys.taken_key import keep_from_dumps
from sevsnp.system import progress
from sevsnp.system.files import each_key_once, write_durable

# The number of an inherited file descriptor from which LUKS_KEY is read, to its end.
DESCRIPTOR_VARIABLE = taken_key.DESCRIPTOR
PROMPT = "-"
MADE_BYTES = 32
MOST_BYTES = taken_key.MAX_KEY
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FORMAT = 2

Kind = Literal["made", "given"]


@dataclass(frozen=True)
class Key:
    """A key, and its source as text; repr() does not show the key."""

    data: bytes = field(repr=False)
    source: str


_known: dict[str, Key] = {}
_reading = threading.Lock()


def was_given() -> bool:
    """Whether LUKS_KEY was given to this run; the key is not read."""
    return DESCRIPTOR_VARIABLE in os.environ or "LUKS_KEY" in _known


def given(key_file: str, *, twice: bool = False) -> Key | None:
    """The key that the user gave for this run: LUKS_KEY, else the setting LUKS_KEY_FILE (``-`` asks); None without one.

    ``twice``: ask for a typed key twice, because a typing error in a new volume's key would lock its owner out. The key
    is cached until this process ends. Raises UserError.
    """
    with _reading:
        if key_file == PROMPT or was_given():
            keep_from_dumps()
        if descriptor := os.environ.pop(DESCRIPTOR_VARIABLE, None):
            _known["LUKS_KEY"] = Key(_from_descriptor(descriptor), "LUKS_KEY")
        if "LUKS_KEY" in _known:
            return _known["LUKS_KEY"]
        if key_file != PROMPT:
            return Key(read_key_file(Path(key_file).expanduser()), key_file) if key_file else None
        name = "typed twice" if twice else "typed"
        if "typed twice" not in _known and name not in _known:
            _known[name] = Key(_typed(twice=twice, before=_known.get("typed")), "the key typed here")
        return _known.get("typed twice") or _known["typed"]


def _from_descriptor(text: str) -> bytes:
    if not text.isdecimal():
        raise UserError(f"{DESCRIPTOR_VARIABLE}={text}: expected the number of a file descriptor", "run ./doitw")
    try:
        with os.fdopen(int(text), "rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"{DESCRIPTOR_VARIABLE}={text}: {error.strerror}", "run ./doitw, which sets the variable"
        ) from None
    return _checked(data, "LUKS_KEY")


def read_key_file(path: Path) -> bytes:
    """All bytes of a key file. Raises UserError if others may read it, or if it is another user's (except for root)."""
    keep_from_dumps()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise UserError(f"{path}: a symbolic link, expected a key file", "name the file itself") from None
        raise UserError(f"{path}: cannot be read: {error.strerror}", "LUKS_KEY_FILE=… names the key file") from None
    # Check the open file, so that it cannot be exchanged after the check.
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: expected a file with a key in it")
        if os.geteuid() not in (0, status.st_uid):
            raise UserError(f"{path}: belongs to uid {status.st_uid}, expected {os.geteuid()}")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise UserError(
                f"{path}: mode {mode:04o}, expected 0600: others may read it", f"run: chmod 600 {quote(str(path))}"
            )
        with open(descriptor, "rb", closefd=False) as stream:
            return _checked(stream.read(MOST_BYTES + 1), str(path))
    finally:
        os.close(descriptor)


def _typed(*, twice: bool, before: Key | None) -> bytes:
    if not sys.stdin.isatty():
        raise UserError("LUKS_KEY_FILE=-: there is no terminal to ask on", "give LUKS_KEY, or a file: LUKS_KEY_FILE=…")
    with progress.paused():
        first = before.data if before else getpass.getpass("disk key: ").encode()
        if twice and getpass.getpass("disk key again: ").encode() != first:
            raise UserError("disk key: the two entries differ", "run the command again")
    return _checked(first, "the key typed here")


def _checked(data: bytes, source: str) -> bytes:
    if not data:
        raise UserError(f"{source}: empty, expected a key of 1 to {MOST_BYTES} bytes")
    if len(data) > MOST_BYTES:
        raise UserError(f"{source}: longer than {MOST_BYTES} bytes, the most that a key may have")
    return data


@dataclass(frozen=True)
class Record:
    """The record of a volume.

    ``key`` says whether the key was ``made`` here or ``given`` by the user. ``generation`` is that of the last boot
    that the owner saw. ``exposed``: the key was sent to a guest without a secure processor. ``sent``: it was sent to a
    confidential guest. ``place`` is the absolute path of the image that the volume was made for.
    """

    key: Kind
    generation: int = 0
    exposed: bool = False
    sent: bool = False
    place: str = ""

    @property
    def opened(self) -> bool:
        """Whether a guest may have opened the volume; if so, a copy of it may hold the user's data."""
        return self.sent or self.exposed or self.generation > 0

    @property
    def only_confidential(self) -> bool:
        """Whether the key was made here, and among guests only confidential ones have received it."""
        return self.key == "made" and self.sent and not self.exposed


def key_path(config_dir: Path, uuid: str) -> Path:
    """The path of the made key of the volume with this LUKS UUID."""
    return _place(config_dir, uuid, "key")


def read_made_key(config_dir: Path, uuid: str) -> Key:
    """The key that was made for a volume. Raises UserError if the key is not on this machine."""
    path = key_path(config_dir, uuid)
    if not path.exists():
        raise UserError(
            f"{path}: no such file: the key that was made for this volume is not here",
            "set CONFIG_DIR to where it was made, or make a new volume: ./doitw setup_luks",
        )
    return Key(read_key_file(path), str(path))


def make_key(config_dir: Path, uuid: str) -> Key:
    """Make a key of 32 random bytes for a new volume.

    The key is completely on disk before the function returns. An existing key is never overwritten.
    """
    path = key_path(config_dir, uuid)
    _private_directory(path.parent)
    keep_from_dumps()
    data = secrets.token_bytes(MADE_BYTES)
    write_durable(path, data, new=True)
    return Key(data, str(path))


def write_record(config_dir: Path, uuid: str, record: Record) -> None:
    """Write a volume's record atomically: after a crash the file has the old or the new content, never a part."""
    path = _place(config_dir, uuid, "json")
    _private_directory(path.parent)
    write_durable(path, json.dumps({"format": _FORMAT, **asdict(record)}).encode() + b"\n")


def read_record(config_dir: Path, uuid: str) -> Record:
    """The record of a volume. Raises UserError if there is no record, or if it is damaged."""
    path = _place(config_dir, uuid, "json")
    try:
        document: Any = json.loads(path.read_bytes(), object_pairs_hook=each_key_once)
        if not isinstance(document, dict) or (form := document.pop("format", None)) not in (1, _FORMAT):
            raise ValueError(f"expected format {_FORMAT}")
        if form == 1:  # from an earlier release, which did not record that it sent a key
            document = {"sent": True, "place": "", **document}
        if set(document) != {each.name for each in fields(Record)}:
            raise ValueError(f"expected {', '.join(each.name for each in fields(Record))}")
        record = Record(**document)
        if record.key not in ("made", "given") or {type(record.exposed), type(record.sent)} != {bool}:
            raise ValueError("expected a key that is made or given, and whether it was exposed or sent")
        if not isinstance(record.place, str):
            raise ValueError("expected the path of an image")
        if type(record.generation) is not int or not 0 <= record.generation < 1 << 64:
            raise ValueError("expected a generation of 64 bits")
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file: this volume was not made here", "set CONFIG_DIR to where it was: CONFIG_DIR=…"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not the record of a volume: {error}") from None
    return record


def update_record(
    config_dir: Path, uuid: str, *, generation: int = 0, exposed: bool = False, sent: bool = False
) -> Record:
    """Record the generation that a guest has reported, or that a guest gets the key; return the new record.

    The generation never decreases and a sent key is never forgotten, in whatever order two runs write.
    """
    directory = _place(config_dir, uuid, "json").parent
    _private_directory(directory)
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        old = read_record(config_dir, uuid)
        record = replace(
            old,
            generation=max(old.generation, generation),
            exposed=old.exposed or exposed,
            sent=old.sent or sent,
        )
        if record != old:
            write_record(config_dir, uuid, record)
    finally:
        os.close(descriptor)
    return record


def known_volumes(config_dir: Path) -> list[str]:
    """The UUIDs of all volumes that have a key or a record here."""
    found = {path.stem for path in (config_dir / "volumes").glob("*") if path.suffix in (".key", ".json")}
    return sorted(name for name in found if _UUID.fullmatch(name))


def forget(config_dir: Path, uuid: str) -> None:
    """Remove key and record of a volume that holds no data. The key is removed first."""
    for suffix in ("key", "json"):
        _place(config_dir, uuid, suffix).unlink(missing_ok=True)


def check_uuid(uuid: str) -> str:
    """Return ``uuid``, which becomes a part of a path. Raises UserError for anything but a UUID in lower case."""
    if not _UUID.fullmatch(uuid):
        raise UserError(f"volume {uuid!r}: expected a UUID in lower case")
    return uuid


def _place(config_dir: Path, uuid: str, suffix: str) -> Path:
    return config_dir / "volumes" / f"{check_uuid(uuid)}.{suffix}"


def _private_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        raise UserError(
            f"{path}: open to others, expected 0700: it holds disk keys", f"run: chmod 700 {quote(str(path))}"
        )
