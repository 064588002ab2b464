# SPDX-License-Identifier: Apache-2.0
"""A job of the tests' own appliance: how cryptsetup and the kernel react to each of many LUKS2 headers.

The headers lie one after the other on the disk ``headers``. Each is opened with its key, detached, over the blank disk
``data``, which has an integrity superblock at every place where one may be expected. No header is checked before.
"""

import os
import struct
import subprocess
import time
from collections.abc import Callable
from typing import Any

import linux
from appliance.luks import cryptsetup, table
from dm_tables import tables_digest

MODULES = ("luks",)
NAME = "root"
EXTRA = "/usr/lib/sevsnp/more-modules"
_OPTIONS = ("--type=luks2", "--disable-external-tokens", "--disable-keyring", "--disable-locks", "--batch-mode")


def run(job: "dict[str, Any]", secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    headers, data = linux.find_disks("headers", "data")
    # These modules are not in the guest's initramfs; only that keeps the guest from a null cipher.
    for name in os.listdir(EXTRA):
        linux.load_module(f"{EXTRA}/{name}")
    results = []
    written = superblock(data, job["format"], bytes.fromhex(job["keys"][0]))
    for number, key in enumerate(job["keys"]):
        copy_header(headers, number * job["size"], job["size"])
        prepare(data, fitting(written, **job["superblocks"][number]))
        began = time.monotonic()
        results.append(one(data, bytes.fromhex(key), job["seconds"]))
        results[-1]["took"] = round(time.monotonic() - began, 2)
        say(done=number + 1, total=len(job["keys"]))
    return {"results": results}


def copy_header(device: str, offset: int, size: int) -> None:
    with open(device, "rb") as stream, open("/run/header", "wb") as target:
        stream.seek(offset)
        target.write(stream.read(size))


def superblock(device: str, format: "list[str]", key: bytes) -> bytes:
    """The superblock of dm-integrity (4 KiB) that cryptsetup writes before the data of one of our volumes."""
    cryptsetup("luksFormat", *format, "--key-file=-", device, secret=key)
    with open(device, "rb") as stream:
        stream.seek(1 << 20)
        return stream.read(4096)


def fitting(superblock: bytes, tag: int = 48, sector: int = 4096, provided: int = 0) -> bytes:
    """The superblock that a host would write for its header: ``tag`` bytes for each ``sector`` bytes, and ``provided``
    sectors of 512 bytes.

    drivers/md/dm-integrity.c, struct superblock: tag size at 10, provided sectors at 16, sectors of a block at 28.
    """
    made = bytearray(superblock)
    struct.pack_into("<H", made, 10, tag)
    if provided:
        struct.pack_into("<Q", made, 16, provided)
    made[28] = (sector // 512).bit_length() - 1
    return bytes(made)


def prepare(device: str, superblock: bytes) -> None:
    """Write the superblock at each place where a mutation lets its segment begin."""
    descriptor = os.open(device, os.O_WRONLY)
    for offset in (0, 1 << 20, (1 << 20) + 4096, 2 << 20):
        os.pwrite(descriptor, superblock, offset)
    os.fsync(descriptor)
    os.close(descriptor)


def one(data: str, key: bytes, seconds: float) -> "dict[str, Any]":
    """``said`` is cryptsetup's error, ``tables`` are the active tables, ``digest`` is the guest's digest of them."""
    words = ["/usr/sbin/cryptsetup", "open", *_OPTIONS, "--header=/run/header", "--key-file=-", data, NAME]
    environment = {"PATH": "/usr/sbin:/usr/bin", "DM_DISABLE_UDEV": "1", "LC_ALL": "C"}
    try:
        done = subprocess.run(words, input=key, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"said": f"no end after {seconds} s"}
    if done.returncode:
        return {"said": done.stderr.decode(errors="replace").strip()[-300:] or f"exit code {done.returncode}"}
    tables = []
    names = subprocess.run(["/usr/sbin/dmsetup", "ls"], capture_output=True, text=True, check=True).stdout.split("\n")
    for name in sorted(line.split()[0] for line in names if line.startswith(NAME)):
        tables.append(table(name))
    try:
        digest = tables_digest(*tables)
    except (TypeError, ValueError):
        digest = ""  # not two mappings with one target each: the guest stops there, too
    for name in [NAME, *(line.split()[0] for line in names if line.startswith(NAME + "_"))]:
        subprocess.run(["/usr/sbin/dmsetup", "remove", name], capture_output=True, check=True)
    return {"tables": tables, "digest": digest}
