# SPDX-License-Identifier: Apache-2.0
"""A host gives its own disk, its own key, or another header to the guest that waits for its owner's key.

What the host hopes for: that the genuine guest, with its genuine launch digest, runs the host's root, takes the host's
key, or writes plaintext for the owner's. The control of every refusal is a guest whose init lacks the check, in which
the host gets it (see luks_arms), or the shared guest, which is unlocked in the same way.
"""

import base64
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sevsnp.attestation.appraisal import Expected, Reason, Refused
from sevsnp.errors import UserError
from sevsnp.images.luks2 import HEADER_SIZE
from sevsnp.keys.luks_key import Record, key_path, write_record
from sevsnp.measurement.launch_digest import launch_digest_of
from sevsnp.owner import key_release
from sevsnp.owner.attestation import verifier
from sevsnp.owner.kept import Conversation
from sevsnp.owner.login import Verdict
from sevsnp.owner.luks import Volume
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import File, VmConfig
from tests.adversary.test_tamper_root import FATAL
from tests.conftest import Built
from tests.support.luks_arms import MARK, NULL_CIPHER, Check, HostDisk, make_host_disk, mutated, without
from tests.support.luks_guests import (
    WAITING,
    Owner,
    Unlocked,
    booted,
    image_copy,
    luks_config,
    make_owner,
    offer_key,
    put,
    stranger,
    unlock,
    wait_for_key,
)
from tests.support.luks_volume import synthetic
from tests.support.replacing import replaced_once
from tests.support.secret_search import forms, search, search_file
from tests.support.shared_guests import refusal

pytestmark = pytest.mark.boot

OPEN = "init: the root is open"
SWITCHING = "init: switching"


@pytest.fixture
def host_disk(built: Built, tmp_path: Path) -> Iterator[HostDisk]:
    disk = make_host_disk(built, tmp_path / "host.img")
    yield disk
    disk.path.unlink()


@pytest.fixture
def owner(built: Built, tmp_path: Path) -> Owner:
    return make_owner(built, tmp_path)


@pytest.fixture
def image(built: Built, tmp_path: Path) -> Iterator[Path]:
    """A copy of the genuine disk."""
    with image_copy(luks_config(built).launch.disks[0].path, tmp_path) as copy:
        yield copy


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_a_host_s_own_disk_is_refused(built: Built, tmp_path: Path, host_disk: HostDisk) -> None:
    """The guest ends before it waits for a key."""
    with booted(built, luks_config(built), host_disk.path, tmp_path) as running:
        log = running.guest.wait_end()
    assert f"{FATAL}: the disk's LUKS header has the SHA-256 {sha256(host_disk.header).hex()}, expected" in log
    assert WAITING not in log
    assert MARK not in log


@pytest.mark.full
def test_control_a_host_s_own_disk_and_key(built: Built, tmp_path: Path, host_disk: HostDisk) -> None:
    """Without the comparisons of owner, header and tables the host hands over its own key, and runs its own root.

    Its kernel has the null cipher then, which spares the host the encryption of its disk.
    """
    config = without(built, tmp_path, Check.OWNER, Check.HEADER, Check.TABLES, Check.CIPHERS)
    with booted(built, config, host_disk.path, tmp_path) as running:
        wait_for_key(running)
        became = offer_key(running.port, stranger(tmp_path / "host"), sha256(host_disk.header), host_disk.key)
        log = running.guest.wait_end()
    assert became == "generation 1"
    assert MARK in log


def test_a_key_is_accepted_from_the_owner_alone(luks_guest: Unlocked) -> None:
    """Even the right key is refused without the owner's client certificate. Control: the owner's login works."""
    assert sorted(luks_guest.strangers) == ["another", "none"]
    for became in luks_guest.strangers.values():
        assert "the guest closed the connection" in became
    log = luks_guest.running.guest.log()
    assert log.count("init: the owner is here") == log.count(OPEN) == 1
    assert FATAL not in log
    assert luks_guest.ssh("echo here").strip() == "here"


def test_a_header_that_is_switched_after_it_was_read_is_not_used(luks_guest: Unlocked) -> None:
    """The disk had another header when the owner's key came; the guest used the header that it had compared."""
    genuine = luks_guest.owner.header.read_bytes()
    assert sha256(luks_guest.header_at_release) != sha256(genuine)
    said = luks_guest.ssh("cat /sys/block/dm-*/dm/uuid; findmnt -no SOURCE /")
    name = luks_guest.owner.uuid.replace("-", "")
    assert sorted(said.split()) == [
        "/dev/mapper/root_guarded",
        f"CRYPT-INTEGRITY-{name}-root_dif",
        f"CRYPT-LUKS2-{name}-root",
    ]


def seen_by_host(guest: Unlocked, secret: bytes) -> dict[str, list[str]]:
    """Which forms of ``secret`` are in the guest's disk, in its console, and in all else that its host has of it."""
    files = [guest.disk, *(path for path in guest.running.guest.options.state.rglob("*") if path.is_file())]
    return {path.name: found for path in files if (found := search_file(path, secret))}


def test_the_key_is_in_no_file_that_the_host_sees(luks_guest: Unlocked) -> None:
    """Nor in the guest's logs, nor in the arguments and environments of its processes."""
    assert search_file(key_path(luks_guest.owner.config_dir, luks_guest.owner.uuid), luks_guest.owner.key) == ["raw"]
    assert {"serial.log", "qemu.log"} <= {path.name for path in luks_guest.running.guest.options.state.iterdir()}
    assert seen_by_host(luks_guest, luks_guest.owner.key) == {}
    look = "journalctl --no-pager; dmesg; cat /proc/cmdline /proc/[0-9]*/cmdline /proc/[0-9]*/environ"
    told = base64.b64decode(luks_guest.ssh(f"sudo sh -c '{look}' 2>/dev/null | base64 -w0"))
    assert all(
        word in told for word in (b"Linux version", b"sevsnp.mode=luks", b"/usr/lib/systemd/systemd", b"\0PATH=")
    )
    assert search(told, luks_guest.owner.key) == []


def test_control_a_canary_in_the_same_files_is_found(luks_guest: Unlocked) -> None:
    """The guest prints it on its console, and its disk has each form of it behind the keyslots."""
    canary = hashlib.sha256(b"a canary in the place of a disk key").digest()
    texts = {name: form for name, form in forms(canary).items() if name != "raw"}
    for form in texts.values():
        luks_guest.ssh(f"echo said: {form.decode()} | sudo tee /dev/console >/dev/null")
    place = HEADER_SIZE - 4096
    before = put(luks_guest.disk, place, b" ".join(forms(canary).values()))
    try:
        found = seen_by_host(luks_guest, canary)
    finally:
        put(luks_guest.disk, place, before)
    assert found == {"serial.log": sorted(texts), luks_guest.disk.name: sorted(forms(canary))}


def another_volume(built: Built, owner: Owner, directory: Path) -> tuple[Owner, VmConfig]:
    """Volume B of the same owner, with a key made for it, and its VM config: it differs in the header's digest only."""
    key = bytes(range(32))
    other = Owner(owner.config_dir, directory / "other.bin")
    other.header.write_bytes(synthetic(key, seed=5).header)
    key_path(owner.config_dir, other.uuid).write_bytes(key)
    key_path(owner.config_dir, other.uuid).chmod(0o600)
    write_record(owner.config_dir, other.uuid, Record("made"))
    config = luks_config(built)
    line = config.launch.cmdline.path.read_text()
    ours, others = (sha256(one.header.read_bytes()).hex() for one in (owner, other))
    cmdline = directory / "cmdline"
    cmdline.write_text(replaced_once(line, ours, others))
    launch = type(config.launch)(**{**vars(config.launch), "cmdline": File(cmdline, sha256_file(cmdline))})
    reference = config.require_reference()
    reference = type(reference)(**{**vars(reference), "launch_digest": launch_digest_of(launch)})
    return other, VmConfig(directory / "other.toml", launch, reference)


@pytest.mark.full
def test_evidence_for_volume_a_is_refused_for_volume_b(built: Built, tmp_path: Path, owner: Owner, image: Path) -> None:
    """The owner of two volumes reaches the guest of the other one: launch digest and REPORT_DATA both show it.

    Control: without the verifier the same guest is sent the key, which does not open its volume.
    """
    other, config = another_volume(built, owner, tmp_path)
    with booted(built, luks_config(built), image, tmp_path) as running:
        wait_for_key(running)
        verify = verifier(config, running.guest.root)
        volume = Volume(other.header, other.config_dir, "")
        context = key_release.owner_context(owner.keys.owner_certificate, owner.keys.owner_private)

        def appraise(talk: Conversation) -> Verdict:
            return verify(talk.evidence, Expected.of(config, talk.report_data), datetime.now(UTC))

        with key_release.connect("127.0.0.1", running.port, context) as connection:
            with pytest.raises(Refused) as refused:
                key_release.release(
                    connection,
                    volume.digest,
                    "guest",
                    appraise=appraise,
                    decide=lambda verdict: volume.secret_for(verdict, emulated_asked=True),
                )
            failed = {check.name for check in refused.value.checks if check.outcome == "failed"}
            assert failed == {Reason.MEASUREMENT, Reason.REPORT_DATA}
            assert not other.record.exposed
            secret = key_release.Secret(volume.digest, 0, other.key)
            refusal(lambda: key_release.send_key(connection, secret, "guest"), "the owner's key is for another volume")
        log = running.guest.wait_end()
    assert f"{FATAL}: the owner's key is for another volume" in log
    assert OPEN not in log


@pytest.mark.full
@pytest.mark.parametrize(
    "mutation",
    [
        NULL_CIPHER,
        "second keyslot, the host's",
        "older, before the key was changed",
        "derivation of 4 GiB",
        "another volume's",
        "a bit after the keyslots",
    ],
)
def test_a_changed_header_before_the_genuine_data_is_refused(
    built: Built, tmp_path: Path, owner: Owner, image: Path, mutation: str
) -> None:
    """Controls: the shared guest, and the tests below."""
    put(image, 0, mutated(owner.header.read_bytes(), owner.key, mutation))
    with booted(built, luks_config(built), image, tmp_path) as running:
        log = running.guest.wait_end()
    assert f"{FATAL}: the disk's LUKS header has the SHA-256 " in log
    assert WAITING not in log


def attest_and_watch(built: Built, config: VmConfig, disk: Path, owner: Owner, place: Path, switch: bytes = b"") -> str:
    """What the owner is told who attests a guest, and its console; ``switch`` is written to the disk before."""
    with booted(built, config, disk, place) as running:
        wait_for_key(running)
        if switch:
            put(disk, 0, switch)
        told = ""
        try:
            unlock(running, owner, place / "attested")
        except UserError as error:
            told = str(error)
        return f"{told}\n{running.guest.wait_end()}"


# Why the guest ends over a root without integrity: there is one table less.
NO_TABLE = f"{FATAL}: /usr/sbin/dmsetup: exit code 1"


@pytest.mark.full
@pytest.mark.parametrize(
    ("removed", "says"),
    [
        ((Check.HEADER,), "REFUSED (report-data)"),
        ((Check.HEADER, Check.CLAIM), NO_TABLE),
        ((Check.HEADER, Check.CLAIM, Check.TABLES), MARK),
    ],
    ids=["bound", "tables-compared", "neither"],
)
def test_control_a_null_data_cipher(
    built: Built, tmp_path: Path, owner: Owner, host_disk: HostDisk, removed: tuple[Check, ...], says: str
) -> None:
    """The owner's keyslot over the host's plaintext: REPORT_DATA gives it away, then the tables; then nothing does."""
    put(host_disk.path, 0, mutated(owner.header.read_bytes(), owner.key, NULL_CIPHER))
    config = without(built, tmp_path, *removed, Check.CIPHERS)
    log = attest_and_watch(built, config, host_disk.path, owner, tmp_path)
    assert says in log
    assert (MARK in log) == (says == MARK)


@pytest.mark.full
@pytest.mark.parametrize(
    ("removed", "says"),
    [((Check.MEMORY,), NO_TABLE), ((Check.MEMORY, Check.TABLES), MARK)],
    ids=["tables-compared", "neither"],
)
def test_control_a_header_that_is_read_twice(
    built: Built,
    tmp_path: Path,
    owner: Owner,
    image: Path,
    host_disk: HostDisk,
    removed: tuple[Check, ...],
    says: str,
) -> None:
    """The genuine header for the comparison, another one and the host's plaintext for cryptsetup."""
    second = mutated(owner.header.read_bytes(), owner.key, NULL_CIPHER) + host_disk.path.read_bytes()[1 << 20 :]
    config = without(built, tmp_path, *removed, Check.CIPHERS)
    log = attest_and_watch(built, config, image, owner, tmp_path, second)
    assert says in log
    assert (MARK in log) == (says == MARK)


@pytest.mark.full
def test_a_disk_that_is_switched_after_its_header_was_read_is_refused(
    built: Built, tmp_path: Path, owner: Owner, image: Path, host_disk: HostDisk
) -> None:
    """The same switch with the genuine guest: with its header in memory it finds no valid data on that disk."""
    second = mutated(owner.header.read_bytes(), owner.key, NULL_CIPHER) + host_disk.path.read_bytes()[1 << 20 :]
    log = attest_and_watch(built, luks_config(built), image, owner, tmp_path, second)
    assert FATAL in log
    assert MARK not in log
    assert OPEN not in log


@pytest.mark.full
def test_control_a_stranger_s_key(built: Built, tmp_path: Path, image: Path) -> None:
    """Without the comparison of the owner the guest tries a stranger's key, and ends because that opens nothing."""
    config = without(built, tmp_path, Check.OWNER)
    with booted(built, config, image, tmp_path) as running:
        wait_for_key(running)
        header = sha256((built.build / "luks" / "header.bin").read_bytes())
        became = offer_key(running.port, stranger(tmp_path / "host"), header, b"the host's own key")
        log = running.guest.wait_end()
    assert "the disk cannot be opened with this key" in became
    assert f"{FATAL}: the disk cannot be opened with this key" in log
