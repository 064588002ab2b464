# SPDX-License-Identifier: Apache-2.0
"""Open the encrypted disk with the measured header and the owner's key, and with no other metadata from the disk.

The header is read once, compared with its measured digest, and used from memory. Then the active device-mapper tables
are compared with their measured digest, before anything is mounted.
"""

import hashlib
import os
import stat

import linux
import root_guard
from dm_tables import tables_digest

NAME = "root"
# cryptsetup's ending: the name of the integrity mapping is the name of the crypt mapping with this ending.
INTEGRITY = "_dif"
HEADER = "/run/luks-header"
GENERATION = ("var", "lib", "openend2e-sevsnp")
MAX_GENERATION = (1 << 63) - 1


def copy_header(device: str, size: int, wanted: str, target: str = HEADER) -> bytes:
    """Read the first ``size`` bytes of ``device``, once, into the file ``target``; return their SHA-256 (32 bytes).

    Raises Stop if the SHA-256 is not ``wanted`` (64 hex digits): the disk is another volume's, or the header changed.
    """
    with open(device, "rb", buffering=0) as stream:
        data = bytearray()
        while len(data) < size and (piece := stream.read(size - len(data))):
            data += piece
    digest = hashlib.sha256(data)
    if digest.hexdigest() != wanted:
        raise linux.Stop(f"the disk's LUKS header has the SHA-256 {digest.hexdigest()}, expected {wanted}")
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    return digest.digest()


def open_mapping(device: str, tables: str, key: "bytes | bytearray", name: str = NAME) -> None:
    """Open ``device`` with the header in memory. Raises Stop for a wrong key, and for tables with another digest.

    ``tables`` is the expected digest of the tables (SHA-256 in hex), ``name`` the mapping's.
    """
    try:
        linux.run(
            "/usr/sbin/cryptsetup",
            "open",
            *("--type", "luks2"),
            *("--header", HEADER),
            *("--key-file", "-"),
            "--disable-external-tokens",
            "--disable-keyring",
            "--disable-locks",
            "--batch-mode",
            device,
            name,
            secret=key,
        )
    except linux.Stop as error:
        raise linux.Stop(f"the disk cannot be opened with this key ({error})") from None
    crypt, integrity = (linux.run("/usr/sbin/dmsetup", "table", each) for each in (name, f"{name}{INTEGRITY}"))
    found = tables_digest(crypt, integrity)
    if found != tables:
        raise linux.Stop(f"the active dm tables have the SHA-256 {found}, expected {tables}: {crypt} {integrity}")


def mount(newroot: str, filesystem: str) -> None:
    """Mount the opened root in such a way that an unreadable block ends the machine."""
    linux.mount(root_guard.guard(NAME), newroot, filesystem, linux.MS_NODEV, "errors=panic")


def enter(root: str, *names: str, make: bool = False) -> int:
    """Open the directory ``names`` below ``root`` without following links. Raises Stop for a name of no directory."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        above = descriptor
        try:
            if make and not _exists(name, above):
                os.mkdir(name, 0o755, dir_fd=above)
                os.fsync(above)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=above)
        except OSError as error:
            raise linux.Stop(f"/{'/'.join(names)} in the root: {name}: {error.strerror}") from None
        finally:
            os.close(above)
    return descriptor


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def count_boot(mounted: str, least: int, where: "tuple[str, ...]" = GENERATION) -> int:
    """Increase the boot count (generation) on the disk mounted at ``mounted``, and return it; ``where`` is its place.

    Raises Stop if the disk has seen fewer boots than ``least``, the last boot that the owner knows of: then the disk is
    an older copy.
    """
    directory = enter(mounted, *where, make=True)
    try:
        found = _read_generation(directory)
        if found < least:
            raise linux.Stop(f"the disk is an old copy: its generation is {found}, the owner's record says {least}")
        _write_generation(directory, found + 1)
    finally:
        os.close(directory)
    return found + 1


def _read_generation(directory: int) -> int:
    try:
        descriptor = os.open("generation", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return 0
    with os.fdopen(descriptor, "rb") as stream:
        text = stream.read(64)
    if not text.isdigit() or not int(text) < MAX_GENERATION:
        raise linux.Stop(f"the disk's generation is {text!r}, expected a number")
    return int(text)


def _write_generation(directory: int, number: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open("generation.new", flags, 0o600, dir_fd=directory)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(str(number).encode())
        stream.flush()
        os.fsync(stream.fileno())
    os.rename("generation.new", "generation", src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def host_key(newroot: str, path: str) -> str:
    """The disk's own SSH host key, made at the first boot; returns the public half, ``type base64``."""
    *folders, name = path.split("/")
    directory = enter(newroot, *folders, make=True)
    try:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            for stale in (name, f"{name}.pub"):
                if _exists(stale, directory):
                    os.unlink(stale, dir_fd=directory)
            linux.run("/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", f"{newroot}/{path}")
            os.sync()
    finally:
        os.close(directory)
    # This follows no link: the whole path was checked, and no program of the root runs yet.
    words = linux.run("/usr/bin/ssh-keygen", "-y", "-P", "", "-f", f"{newroot}/{path}").split()
    if len(words) < 2 or words[0] != "ssh-ed25519":
        raise linux.Stop(f"/{path} in the root is no Ed25519 key")
    return " ".join(words[:2])
