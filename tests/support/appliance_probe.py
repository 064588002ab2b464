# SPDX-License-Identifier: Apache-2.0
"""A job for the tests' own appliance; it is not in the project's own initramfs."""

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import linux
from appliance.luks import INTEGRITY, MAPPING, NAME, cryptsetup, table
from dm_tables import tables_digest

MODULES = ("luks",)


def run(job: "dict[str, Any]", secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    does: dict[str, Callable[..., dict[str, Any]]] = {
        "echo": echo, "fail": fail, "sleep": sleep, "end": end, "first": first, "rooms": rooms,
        "open": open_volume,
    }  # fmt: skip
    return does[job.pop("what")](secret=secret, say=say, **job)


def echo(*, secret: bytes, say: "Callable[..., None]", **job: "Any") -> "dict[str, Any]":
    with open("/proc/cmdline", encoding="ascii") as stream:
        line = stream.read()
    return {"job": job, "secret": secret.hex(), "network": os.listdir("/sys/class/net"), "cmdline": line}


def fail(*, secret: bytes, say: "Callable[..., None]", words: str) -> "dict[str, Any]":
    raise linux.Stop(words)


def sleep(*, secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    say(step="asleep")
    time.sleep(600)
    return {}


def end(*, secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    print("a last word", flush=True)
    linux.stop(acpi=True)
    return {}


def first(*, secret: bytes, say: "Callable[..., None]", role: str) -> "dict[str, Any]":
    """The first 16 bytes of a disk."""
    with open(linux.find_disks(role)[0], "rb") as stream:
        return {"first": stream.read(16).hex()}


def rooms(*, secret: bytes, say: "Callable[..., None]", roles: "list[str]", options: "list[str]") -> "dict[str, Any]":
    """The size in bytes of the mapping of a fresh volume on each disk."""
    found = {}
    for role in roles:
        (disk,) = linux.find_disks(role)
        cryptsetup("luksFormat", *options, "--key-file=-", disk, secret=secret)
        cryptsetup("open", "--key-file=-", disk, NAME, secret=secret)
        with open(MAPPING, "rb") as stream:
            found[role] = stream.seek(0, os.SEEK_END)
        cryptsetup("close", NAME)
    return found


def open_volume(*, secret: bytes, say: "Callable[..., None]", files: "list[str]", wrong: str) -> "dict[str, Any]":
    """Open a volume as the guest does, read each sector of it and some files, write one; then try the key ``wrong``."""
    (disk,) = linux.find_disks("luks")
    cryptsetup("open", "--key-file=-", disk, NAME, secret=secret)
    found: dict[str, Any] = {"tables": tables_digest(table(NAME), table(INTEGRITY)), "read": 0}
    with open(MAPPING, "rb", buffering=0) as stream:
        while piece := stream.read(4 << 20):
            found["read"] += len(piece)
    linux.mount(MAPPING, "/newroot", "ext4")
    room = os.statvfs("/newroot")
    found["free"] = room.f_bavail * room.f_frsize
    found |= {name: digest(name) for name in files}
    with open("/newroot/written", "wb") as file:
        file.write(bytes(1 << 20))
    close()
    if wrong:
        try:
            cryptsetup("open", "--key-file=-", disk, NAME, secret=bytes.fromhex(wrong))
        except linux.Stop as error:
            found["wrong key"] = str(error)
        cryptsetup("open", "--key-file=-", disk, NAME, secret=secret)
        linux.mount(MAPPING, "/newroot", "ext4")
        found["written"] = digest("written")
        close()
    return found


def digest(name: str) -> str:
    with open(f"/newroot/{name}", "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def close() -> None:
    linux.run("/usr/bin/busybox", "umount", "/newroot")
    cryptsetup("close", NAME)
