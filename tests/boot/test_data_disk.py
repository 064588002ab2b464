# SPDX-License-Identifier: Apache-2.0
"""A verified guest with an encrypted data disk: written data is kept, and the guest accepts no other disk."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevsnp.e2e.guest import ssh
from sevsnp.errors import UserError
from sevsnp.keys.luks_key import read_record, write_record
from sevsnp.owner.luks import release_data_key
from sevsnp.system.copying import copy_file
from sevsnp.vm_config.config import VmConfig
from tests.boot.test_written_volume import WAITING, Owner
from tests.conftest import Built
from tests.support.copies import copy_with_keys, one_line
from tests.support.harness import with_disk
from tests.support.luks_arms import Check, without
from tests.support.luks_guests import put, read_disk
from tests.support.luks_volume import synthetic
from tests.support.shared_guests import Attested, Running, attested, started

pytestmark = [pytest.mark.boot, pytest.mark.full]

SIZE = ["DATA_SIZE=32M", "PLATFORM=emulated"]
OPEN = "init: the data disk is open, generation "
# docker's and podman's way to store images: an overlay whose upper directory is not on an overlay.
OVERLAY = "mkdir -p {0}/l {0}/u {0}/w {0}/m && mount -t overlay o -o lowerdir={0}/l,upperdir={0}/u,workdir={0}/w {0}/m"


@dataclass(frozen=True)
class Written:
    """The disk after two boots: as it was after the first and after the second, and the VM config of its guest."""

    owner: Owner
    config: VmConfig
    first: Path
    second: Path

    @property
    def generation(self) -> int:
        return read_record(self.owner.built.config_dir, self.second.parent.name).generation


@pytest.fixture(scope="module")
def written(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """By the user's commands: made, written, its root updated, and read again."""
    directory = tmp_path_factory.mktemp("data")
    owner = Owner(copy_with_keys(built, directory), directory / "data")
    owner.doit("setup_verity", *SIZE)
    with owner.running("run_sev_snp_verity", "verity") as config:
        assert ssh(config, "findmnt -no SOURCE,FSTYPE /srv").split() == ["/dev/mapper/data_guarded[/data]", "ext4"]
        ssh(config, "sudo sh -c 'echo kept >/srv/kept && head -c 22M /dev/urandom >/srv/large && sync'")
        digest = ssh(config, "sha256sum /srv/large")
        ssh(config, f"sudo sh -c '{OVERLAY.format('/srv/overlay')}'")
        # Control: in /var, which is an overlay itself.
        assert "failed" in ssh(config, f"sudo sh -c '{OVERLAY.format('/var/overlay')}' 2>&1 || echo failed")
        refusal = one_line(owner.doit("run_sev_snp_verity", "PLATFORM=emulated", "NAME=other", check=False))
        assert "data disk " in refusal and ": in use by process " in refusal
    (volume,) = (owner.data_dir / "volumes").iterdir()
    copy_file(volume / "data.img", directory / "first.img", 0o600)
    before = owner.built.config("emulated").require_reference().launch_digest
    owner.doit("setup_verity", *SIZE, "GUEST_DNS=192.0.2.1")
    updated = owner.built.config("emulated")
    assert updated.require_reference().launch_digest != before
    with owner.running("run_sev_snp_verity", "verity") as config:
        assert ssh(config, "cat /srv/kept && sha256sum /srv/large") == f"kept\n{digest}"
        assert "192.0.2.1" in ssh(config, "cat /etc/resolv.conf")
    yield Written(owner, updated, directory / "first.img", volume / "data.img")
    shutil.rmtree(directory)


@contextlib.contextmanager
def booted(written: Written, config: VmConfig, disk: Path, directory: Path) -> Iterator[Running]:
    """Boot with a copy of ``disk``, until the guest waits for its key or ends."""
    copy = directory / "copy.img"
    copy.unlink(missing_ok=True)
    copy_file(disk, copy, 0o600)
    config = dataclasses.replace(config, launch=with_disk(config.launch, "data", copy))
    with started(written.owner.built, config, directory / "state") as running:
        yield running
    copy.unlink()


def send_key(running: Running, written: Written, output: Path) -> None:
    running.guest.wait_for(WAITING)
    release_data_key(
        vm_config=running.config.source, config_dir=written.owner.built.config_dir, key_file="", host="127.0.0.1",
        port=running.port, emulated_root=running.guest.root, output=output, again="",
    )  # fmt: skip


def test_written_data_is_kept_over_a_reboot_and_an_update(written: Written) -> None:
    assert written.generation == 2


def test_another_disk_is_refused(written: Written, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    copy_file(written.second, other, 0o600)
    put(other, 0, synthetic(seed=9).header)
    with booted(written, written.config, other, tmp_path) as running:
        log = running.guest.wait_end()
    assert "init: FATAL: the disk's LUKS header has the SHA-256 " in log and WAITING not in log
    unchecked = without(written.owner.built, tmp_path / "control", Check.HEADER, of=written.config)
    with booted(written, unchecked, other, tmp_path) as running:
        running.guest.wait_for(WAITING)


def test_an_older_copy_is_refused(written: Written, tmp_path: Path) -> None:
    assert written.generation >= 2
    with booted(written, written.config, written.first, tmp_path) as running:
        with pytest.raises(UserError, match="the disk is an old copy: its generation is 1"):
            send_key(running, written, tmp_path)
        assert OPEN not in running.guest.wait_end()
    unchecked = without(written.owner.built, tmp_path / "control", Check.GENERATION, of=written.config)
    with booted(written, unchecked, written.first, tmp_path) as running:
        # The owner does not believe the number either, but the guest goes on with the old data.
        with pytest.raises(UserError, match="generation: found 2, expected a number above"):
            send_key(running, written, tmp_path)
        running.guest.wait_for(f"{OPEN}2")


def damaged(disk: Path, directory: Path) -> Path:
    """A copy in which one byte of each 64 KiB is another one, in the last quarter: the large file's."""
    copy = directory / "damaged.img"
    copy_file(disk, copy, 0o600)
    size = copy.stat().st_size
    for offset in range(size * 3 // 4, size - (1 << 20), 1 << 16):
        put(copy, offset, bytes([read_disk(copy, offset, 1)[0] ^ 1]))
    return copy


def opened(running: Running, written: Written, output: Path) -> Attested:
    send_key(running, written, output)
    return attested(running)


def test_a_damaged_block_ends_the_guest(written: Written, tmp_path: Path) -> None:
    disk, config_dir, uuid = (
        damaged(written.second, tmp_path),
        written.owner.built.config_dir,
        written.second.parent.name,
    )
    record = read_record(config_dir, uuid)
    with booted(written, written.config, disk, tmp_path) as running:
        guest = opened(running, written, tmp_path)
        assert guest.ssh("cat /srv/kept") == "kept\n"
        with pytest.raises(UserError):
            guest.ssh("sudo cat /srv/large >/dev/null")
        assert "Kernel panic - not syncing: dm-verity device" in running.guest.wait_end()
    write_record(config_dir, uuid, record)  # that boot counted in its own copy of the disk
    unguarded = without(written.owner.built, tmp_path / "control", Check.DATA_GUARD, of=written.config)
    with booted(written, unguarded, disk, tmp_path) as running:
        guest = opened(running, written, tmp_path)
        said = guest.ssh("sudo cat /srv/large 2>&1 >/dev/null || echo goes on")
        assert "Input/output error" in said and "goes on" in said
