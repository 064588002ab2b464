# SPDX-License-Identifier: Apache-2.0
"""Reads guest-vm/guest.yaml, strictly: users, units and removals of the guest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system.yaml_loader import load

_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(service|socket|target|timer|path|mount|automount|swap|slice|scope|device)")


@dataclass(frozen=True)
class User:
    """An account without a password.

    ``ssh``: the owner's key may log in; ``sudo``: it may use sudo without a password.
    """

    name: str
    uid: int
    shell: str = "/bin/bash"
    groups: tuple[str, ...] = ()
    ssh: bool = False
    sudo: bool = False


@dataclass(frozen=True)
class Guest:
    """The content of guest.yaml."""

    hostname: str
    users: tuple[User, ...] = ()
    enable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mask: tuple[str, ...] = ()
    mask_generators: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class _Reader:
    """Typed access to a YAML document; every error message names the file and the key."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def fail(self, key: str, value: object, expected: str) -> UserError:
        return UserError(f"{self.file}: {key}: found {value!r}, expected {expected}")

    def mapping(self, key: str, value: Any, known: Sequence[str] = ()) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.fail(key, value, "`name: value` lines")
        for name in value:
            if known and name not in known:
                raise UserError(f"{self.file}: {key}: unknown key {name!r}", f"known: {', '.join(known)}")
        return value

    def text(self, key: str, value: Any, form: re.Pattern[str], expected: str) -> str:
        if not isinstance(value, str) or not form.fullmatch(value):
            raise self.fail(key, value, expected)
        return value

    def texts(self, key: str, value: Any, form: re.Pattern[str], expected: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self.fail(key, value, "a list")
        return tuple(self.text(key, item, form, expected) for item in value)

    def flag(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.fail(key, value, "true or false")
        return value


def read_guest(file: Path) -> Guest:
    """Read guest.yaml. Raises UserError naming the file and key of an unknown, missing or malformed value."""
    document = load(file)
    read = _Reader(file)
    values = read.mapping("document", document, list(Guest.__dataclass_fields__))
    path = re.compile(r"(?!/)[^\n]+")
    enable = read.mapping("enable", values.get("enable", {}))
    users = values.get("users", [])
    if not isinstance(users, list):
        raise read.fail("users", users, "a list")
    return Guest(
        hostname=read.text("hostname", values.get("hostname"), _HOSTNAME, "a host name"),
        users=tuple(_user(read, user) for user in users),
        enable={
            read.text("enable", target, _UNIT, "a unit"): read.texts(f"enable: {target}", units, _UNIT, "a unit name")
            for target, units in enable.items()
        },
        mask=read.texts("mask", values.get("mask", []), _UNIT, "a unit name"),
        mask_generators=read.texts(
            "mask_generators", values.get("mask_generators", []), re.compile(r"[a-z0-9-]+"), "a generator's name"
        ),
        remove=read.texts("remove", values.get("remove", []), path, "a relative path pattern"),
    )


def _user(read: _Reader, value: Any) -> User:
    values = read.mapping("users", value, list(User.__dataclass_fields__))
    name = read.text("users: name", values.get("name"), _NAME, "a user name")
    uid = values.get("uid")
    if not isinstance(uid, int) or isinstance(uid, bool) or not 1000 <= uid < 60000:
        raise read.fail(f"users: {name}: uid", uid, "a number from 1000 to 59999")
    return User(
        name=name,
        uid=uid,
        shell=read.text(f"users: {name}: shell", values.get("shell", "/bin/bash"), re.compile(r"/[\w./-]+"), "a path"),
        groups=read.texts(f"users: {name}: groups", values.get("groups", []), _NAME, "a group name"),
        ssh=read.flag(f"users: {name}: ssh", values.get("ssh", False)),
        sudo=read.flag(f"users: {name}: sudo", values.get("sudo", False)),
    )
