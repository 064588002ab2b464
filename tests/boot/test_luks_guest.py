# SPDX-License-Identifier: Apache-2.0
"""The encrypted guest, booted under emulation: it waits for a key, accepts only its owner, and keeps its data."""

import contextlib
import hashlib
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sevsnp.attestation.appraisal import Expected
from sevsnp.e2e.guest import ssh, wait_for_login
from sevsnp.e2e.luks import look_at_root, wait_for_agent
from sevsnp.emulation.verify import verify_emulated
from sevsnp.errors import UserError
from sevsnp.host.console import WAITING
from sevsnp.host.volume import on_copy
from sevsnp.keys import luks_key
from sevsnp.keys.pairs import ensure_keys
from sevsnp.owner.kept import Conversation
from sevsnp.owner.key_release import Opened, Secret, connect, owner_context, release, request_evidence
from sevsnp.owner.login import Verdict
from sevsnp.owner.luks import Volume, attest_luks
from sevsnp.vm_config.config import VmConfig, read_vm_config
from tests.conftest import Built
from tests.support.configs import honest, other_words
from tests.support.hands import prompts
from tests.support.harness import BOOT_SECONDS, Guest, boot
from tests.support.waiting import NET

pytestmark = pytest.mark.boot

FATAL = "init: FATAL: "
# The key's way to the disk: a passphrase is made slow on purpose, and the processor is emulated.
OPEN_SECONDS = 600


@dataclass(frozen=True)
class Luks:
    """What setup_luks made, and a record of the volume of the test's own in ``config_dir``."""

    built: Built
    config: VmConfig
    header: Path
    config_dir: Path

    @property
    def volume(self) -> Volume:
        return Volume(self.header, self.config_dir, "")

    @contextlib.contextmanager
    def waiting(self, state: Path) -> Iterator[Guest]:
        """A guest on the disk in ``state``, which is made there if absent, that waits for its key."""
        with self.started(state) as guest:
            wait_for_agent(guest.process, guest.options.attest_port, BOOT_SECONDS, guest.options.serial_log)
            yield guest

    @contextlib.contextmanager
    def started(self, state: Path) -> Iterator[Guest]:
        state.mkdir(parents=True, exist_ok=True)
        with boot(on_copy(self.config.launch, state), self.built.qemu, state) as guest:
            yield guest

    def attest(self, guest: Guest) -> Path:
        """`attest_luks`; gives the ssh configuration that it wrote."""
        output = guest.options.state / "attested"
        output.mkdir(exist_ok=True)
        attest_luks(
            vm_config=self.config.source,
            header=self.header,
            config_dir=self.config_dir,
            key_file="",
            host="127.0.0.1",
            port=guest.options.attest_port,
            ssh_port=guest.options.ssh_port,
            emulated_root=guest.root,
            user="user",
            template=self.built.project / "templates" / "ssh_config.j2",
            output=output,
        )
        return output / "ssh_config"

    def send(self, guest: Guest, secret: Secret) -> Opened:
        """The owner's own protocol with whatever secret, past everything that attest_luks looks at before."""

        def appraise(talk: Conversation) -> Verdict:
            expected = Expected.of(self.config, talk.report_data)
            return verify_emulated(talk.evidence, expected, datetime.now(UTC), guest.root)

        keys = self.built.keys
        context = owner_context(keys.owner_certificate, keys.owner_private)
        with connect("127.0.0.1", guest.options.attest_port, context) as connection:
            return release(
                connection, self.volume.digest, "the guest", appraise=appraise, decide=lambda verdict: secret
            )[2]


@pytest.fixture(scope="session")
def made(built: Built) -> VmConfig:
    done = built.doit("setup_luks", check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return read_vm_config(built.build / "luks" / "vm-config-luks.emulated.toml")


@pytest.fixture
def luks(built: Built, made: VmConfig, tmp_path: Path) -> Luks:
    """The volume as its owner has it on the first day, in a copy: no test counts another's boots."""
    config_dir = tmp_path / "config"
    shutil.copytree(built.config_dir, config_dir)
    found = Luks(built, made, built.build / "luks" / "header.bin", config_dir)
    luks_key.write_record(config_dir, found.volume.uuid, luks_key.Record("made"))
    return found


def power_off(guest: Guest, config: Path) -> None:
    ssh(config, "sudo systemctl poweroff || true")
    log = guest.wait_end(120)
    assert guest.process.returncode == 0
    assert prompts(log) == [] and FATAL not in log


def ended(guest: Guest) -> str:
    """What the guest said as it powered off by itself."""
    log = guest.wait_end(OPEN_SECONDS)
    assert prompts(log) == [] and FATAL in log and "switching to" not in log
    return log.partition(FATAL)[2].partition("\n")[0]


@pytest.mark.full
def test_written_data_is_kept_and_an_old_copy_of_the_disk_is_refused(luks: Luks, tmp_path: Path) -> None:
    state, old = tmp_path / "state", tmp_path / "old.img"
    with luks.waiting(state) as guest:
        log = guest.log()
        assert log.index("init: modules: base, luks, emulated") < log.index(WAITING)
        config = luks.attest(guest)
        wait_for_login(config)
        assert look_at_root(config) == {"root_encrypted": True, "integrity": True}
        first_key = (config.parent / "known_hosts").read_text().split()[1:]
        ssh(config, "sudo sh -c 'echo kept > /root/kept && sync'")
        # The agent has ended, and with it all of the initramfs.
        with pytest.raises(UserError, match="no answer"):
            connect("127.0.0.1", guest.options.attest_port, owner_context(*owner(luks)), 5)
        power_off(guest, config)
    assert luks.volume.record == luks_key.Record("made", generation=1, exposed=True)
    shutil.copyfile(state / "luks.img", old)
    assert b"kept\n" not in old.read_bytes()
    with luks.waiting(state) as guest:
        config = luks.attest(guest)
        wait_for_login(config)
        assert ssh(config, "sudo cat /root/kept /var/lib/openend2e-sevsnp/generation").split() == [
            "kept",
            "2",
        ]
        assert (config.parent / "known_hosts").read_text().split()[1:] == first_key
        power_off(guest, config)
    # The whole disk as it was after the first boot: its owner has seen a second.
    shutil.copyfile(old, state / "luks.img")
    with luks.waiting(state) as guest:
        with pytest.raises(UserError, match="the disk is an old copy: its generation is 1, the owner's record says 2"):
            luks.attest(guest)
        assert "the disk is an old copy" in ended(guest)
    # Control: whoever does not remember opens it.
    luks_key.write_record(luks.config_dir, luks.volume.uuid, replace(luks.volume.record, generation=1))
    with luks.waiting(state) as guest:
        luks.attest(guest)
    assert luks.volume.record.generation == 2


def owner(luks: Luks) -> tuple[Path, Path]:
    return luks.built.keys.owner_certificate, luks.built.keys.owner_private


def test_strangers_are_disconnected_and_a_wrong_key_ends_the_guest(luks: Luks, tmp_path: Path) -> None:
    stranger = ensure_keys(tmp_path / "stranger")
    with luks.waiting(tmp_path / "state") as guest:
        port = guest.options.attest_port
        for _ in range(2):
            with pytest.raises(UserError), contextlib.ExitStack() as stack:
                context = owner_context(stranger.owner_certificate, stranger.owner_private)
                connection = stack.enter_context(connect("127.0.0.1", port, context))
                request_evidence(connection, luks.volume.digest, "the guest")
        with contextlib.ExitStack() as stack:
            for data in (b"GET / HTTP/1.0\r\n\r\n", b"", b"\x16\x03\x01" + bytes(100_000)):
                plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), NET))
                with contextlib.suppress(OSError):
                    plain.sendall(data)
            assert FATAL not in guest.log() and guest.process.poll() is None
            # The owner is served while they hold their places.
            with pytest.raises(UserError, match="the disk cannot be opened with this key"):
                luks.send(guest, Secret(luks.volume.digest, 0, b"a wrong key"))
        assert "the disk cannot be opened with this key" in ended(guest)


@pytest.mark.full
def test_a_changed_header_ends_the_guest_before_it_waits_for_the_key(luks: Luks, tmp_path: Path) -> None:
    """One bit of the header's JSON area on the disk; the control is every boot above."""
    state = tmp_path / "state"
    state.mkdir()
    launch = on_copy(luks.config.launch, state)
    with (state / "luks.img").open("r+b") as stream:
        stream.seek(4096 + 20)
        byte = stream.read(1)
        stream.seek(4096 + 20)
        stream.write(bytes([byte[0] ^ 1]))
    # ./run says so before it starts anything; a host that does as it likes starts it.
    with pytest.raises(UserError, match="the disk of another volume"):
        on_copy(luks.config.launch, state)
    with boot(launch, luks.built.qemu, state) as guest:
        assert "the disk's LUKS header has the SHA-256" in ended(guest)
        assert WAITING not in guest.log()


@pytest.mark.full
def test_a_mapping_with_other_dm_tables_is_not_mounted(luks: Luks, tmp_path: Path) -> None:
    """Disk and key are right; the measured command line has the digest of other dm tables."""
    line = luks.config.launch.cmdline.path.read_text()
    tables = line.partition("sevsnp.luks=")[2].split()[0].rpartition(":")[2]
    cmdline = other_words(luks.config, tmp_path, {tables: hashlib.sha256(b"other tables").hexdigest()})
    other = replace(luks, config=honest(luks.config, tmp_path, cmdline=cmdline))
    key = luks_key.read_made_key(luks.config_dir, luks.volume.uuid).data
    with other.waiting(tmp_path / "state") as guest:
        with pytest.raises(UserError, match="the active dm tables have the SHA-256"):
            other.send(guest, Secret(luks.volume.digest, 0, key))
        assert "the active dm tables have the SHA-256" in ended(guest)
    # Control: the same key, sent in the same way to the guest that expects this mapping.
    with luks.waiting(tmp_path / "state") as guest:
        assert luks.send(guest, Secret(luks.volume.digest, 0, key)).generation == 1
