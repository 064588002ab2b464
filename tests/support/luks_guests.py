# SPDX-License-Identifier: Apache-2.0
"""Guests of the encrypted workflow for tests: each with its own disk, owner's directory and record."""

import contextlib
import hashlib
import os
import shutil
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sevsnp.e2e.guest import wait_for_login
from sevsnp.errors import UserError
from sevsnp.images.luks2 import HEADER_SIZE, Luks2
from sevsnp.keys.luks_key import Record, read_made_key, read_record, write_record
from sevsnp.keys.pairs import ensure_keys
from sevsnp.keys.paths import Keys
from sevsnp.owner.key_release import Secret, connect, owner_context, request_evidence, send_key
from sevsnp.owner.luks import attest_luks
from sevsnp.system.copying import copy_file
from sevsnp.vm_config.config import VmConfig, read_vm_config
from tests.conftest import Built, until_last_use
from tests.support.harness import BOOT_SECONDS, with_disk
from tests.support.luks_volume import synthetic
from tests.support.shared_guests import Attested, Running, shared, started

ROLE = "luks"
WAITING = "init: waiting for the disk key on port 8088"


def luks_config(built: Built) -> VmConfig:
    """The emulated VM config of the encrypted workflow."""
    return read_vm_config(built.build / "luks" / "vm-config-luks.emulated.toml")


@dataclass(frozen=True)
class Owner:
    """A copy of the owner's CONFIG_DIR, and the header of one of its volumes."""

    config_dir: Path
    header: Path

    @property
    def keys(self) -> Keys:
        return Keys.of(self.config_dir)

    @property
    def uuid(self) -> str:
        return Luks2.read(self.header).uuid

    @property
    def record(self) -> Record:
        return read_record(self.config_dir, self.uuid)

    @property
    def key(self) -> bytes:
        return read_made_key(self.config_dir, self.uuid).data


def make_owner(built: Built, directory: Path, *, generation: int = 0) -> Owner:
    """An owner who has seen the built volume boot ``generation`` times."""
    shutil.copytree(built.config_dir, directory / "config")
    owner = Owner(directory / "config", built.build / "luks" / "header.bin")
    write_record(owner.config_dir, owner.uuid, Record("made", generation))
    return owner


@contextlib.contextmanager
def image_copy(image: Path, directory: Path) -> Iterator[Path]:
    """A copy of a disk image, removed after its use: pytest keeps its directories."""
    directory.mkdir(parents=True, exist_ok=True)
    copy = directory / "luks.img"
    try:
        copy_file(image, copy, 0o600)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


@contextlib.contextmanager
def booted(
    built: Built, config: VmConfig, disk: Path, directory: Path, extra: tuple[str, ...] = ()
) -> Iterator[Running]:
    """Boot with ``disk``, to which the guest writes, and the host's QEMU options ``extra``; yield early in the boot."""
    launch = with_disk(config.launch, ROLE, disk)
    with started(built, replace(config, launch=launch), directory / "state", extra) as running:
        yield running


def wait_for_key(running: Running) -> None:
    """Wait until the guest waits for its key.

    The console says so when the agent listens. A probe of the port would not do: an agent without the check of the
    client would take the probe for its owner.
    """
    running.guest.wait_for(WAITING)


def unlock(running: Running, owner: Owner, output: Path) -> None:
    """`attest_luks` for a guest that waits."""
    output.mkdir(parents=True, exist_ok=True)
    attest_luks(
        vm_config=running.config.source,
        header=owner.header,
        config_dir=owner.config_dir,
        key_file="",
        host="127.0.0.1",
        port=running.port,
        ssh_port=running.ssh_port,
        emulated_root=running.guest.root,
        user="user",
        template=running.built.project / "templates" / "ssh_config.j2",
        output=output,
    )


def put(path: Path, offset: int, data: bytes) -> bytes:
    """Write ``data`` into a disk image that a guest may be using; return the old bytes."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        before = stream.read(len(data))
        stream.seek(offset)
        stream.write(data)
    return before


def offer_key(port: int, context: ssl.SSLContext, header: bytes, key: bytes) -> str:
    """Offer a key for the ``header`` (its digest) through ``context``, for any evidence; return the result as text."""
    try:
        with connect("127.0.0.1", port, context) as connection:
            request_evidence(connection, header, "guest")
            return f"generation {send_key(connection, Secret(header, 0, key), 'guest').generation}"
    except UserError as error:
        return str(error)


def anonymous() -> ssl.SSLContext:
    """A client without a certificate, which accepts any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def stranger(directory: Path) -> ssl.SSLContext:
    """A client with another user's owner certificate, as the project makes them."""
    keys = ensure_keys(directory)
    return owner_context(keys.owner_certificate, keys.owner_private)


@dataclass(frozen=True)
class Unlocked(Attested):
    """A guest whose root its owner has unlocked.

    ``strangers`` are the results of the clients before the owner, which offered the volume's own key. At the time of
    the release, ``header_at_release`` was on the disk instead of the header that the guest had read, which is back now.
    """

    owner: Owner
    disk: Path
    strangers: Mapping[str, str]
    header_at_release: bytes


def _unlock_shared(running: Running, owner: Owner, disk: Path) -> Unlocked:
    directory = running.guest.options.state / "attested"
    wait_for_key(running)
    genuine = owner.header.read_bytes()
    digest = hashlib.sha256(genuine).digest()
    contexts = {"none": anonymous(), "another": stranger(directory / "stranger")}
    strangers = {name: offer_key(running.port, context, digest, owner.key) for name, context in contexts.items()}
    other = synthetic(seed=9).header
    assert put(disk, 0, other) == genuine
    unlock(running, owner, directory)
    with disk.open("rb") as stream:
        at_release = stream.read(HEADER_SIZE)
    put(disk, 0, genuine)
    # Not by polling sshd's banner: sshd locks out a client for a while if it does that too often.
    wait_for_login(directory / "ssh_config", BOOT_SECONDS)
    return Unlocked(running, directory, owner, disk, strangers, at_release)


_UNLOCKED = pytest.StashKey[Unlocked]()


@pytest.fixture(scope="session")
def luks_guest(request: pytest.FixtureRequest, built: Built) -> Unlocked:
    """The guest of the encrypted workflow, unlocked and reachable by ssh, with a copy of the image as its disk.

    It also has the results of the strangers' attempts, and the header that its disk had meanwhile.
    """
    if (done := request.config.stash.get(_UNLOCKED, None)) is not None:
        return done
    owners: list[Owner] = []
    disks: list[Path] = []

    def make(directory: Path) -> VmConfig:
        config = luks_config(built)
        owners.append(make_owner(built, directory))
        disks.append(
            until_last_use(request.config, "luks_guest").enter_context(
                image_copy(config.launch.disks[0].path, directory)
            )
        )
        return replace(config, launch=with_disk(config.launch, ROLE, disks[0]))

    running = shared(request, "luks_guest", make, "tcg")
    assert owners, "its owner could not open it when it was first asked for"
    request.config.stash[_UNLOCKED] = unlocked = _unlock_shared(running, owners[0], disks[0])
    return unlocked


def read_disk(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a disk image."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
