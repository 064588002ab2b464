# SPDX-License-Identifier: Apache-2.0
"""Hints about volumes: the choice of one, its directory, its disk from another machine, and its keys.

The volumes are small, with real headers; here make_source makes the outputs of setup_luks.
"""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sevsnp.host.volume import measured_header, on_copy
from sevsnp.images.luks2 import Luks2, check_ours
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record
from sevsnp.qemu.process import check_files
from sevsnp.vm_config.cmdline import read_cmdline
from sevsnp.vm_config.config import read_vm_config
from sevsnp.volumes.boot import _check_unused, adopt_volume, check_tables, update_volume
from sevsnp.volumes.directory import CONFIGS, Source, Volume, left, note_earlier, say_what_stays
from tests.conftest import Built
from tests.support.luks_volume import make_header, metadata_of, with_metadata
from tests.support.table import Told, failure, remedies
from tests.support.written_volume import KEY, make_source, uuid_of
from tests.unit.guests.test_volume_guest import Ground, ground
from tests.unit.host.test_volume import launch_of
from tests.unit.volumes.test_volume_boot import CRYPT, INTEGRITY

__all__ = ["ground"]


def word(hint: str, name: str) -> str:
    """What a hint's command gives to a setting."""
    found = re.search(rf"\b{name}=(\S+)", hint)
    assert found, hint
    return found[1]


@remedies("sevsnp.volumes.directory", "make one: ./doitw setup_luks — or set DATA_DIR to where yours are")
def test_no_volume(told: Told, ground: Ground, tmp_path: Path) -> None:
    source = make_source(tmp_path / "away")
    Volume.of(tmp_path / "yours", source.uuid).make(source)
    told.instead(ground.run, lambda: ground.run(data_dir=tmp_path / "yours"))
    told.mended(ground.run, lambda: make_source(ground.build))


@remedies("sevsnp.volumes.directory", "run one of them: {}", "./doitw {} VOLUME={}")
def test_one_of_several_volumes(told: Told, ground: Ground, tmp_path: Path) -> None:
    for seed in (1, 2):
        source = make_source(tmp_path / str(seed), seed)
        Volume.of(ground.base / "data", source.uuid).make(source)
    hint = told.hint(ground.run)
    assert hint.startswith("run one of them: ./doitw run_sev_snp_luks ")
    assert ground.run(volume=word(hint, "VOLUME")).uuid == uuid_of(1)


@remedies("sevsnp.volumes.directory", "end that one first, or take another volume: VOLUME=…")
def test_a_volume_in_use(told: Told, ground: Ground, tmp_path: Path) -> None:
    make_source(ground.build)
    other = make_source(tmp_path / "other", 2)
    Volume.of(ground.base / "data", other.uuid).make(other)
    with ground.run().locked():
        told.instead(ground.run, lambda: ground.run(volume=other.uuid))
    ground.run()


@remedies(
    "sevsnp.volumes.directory",
    "boot it: ./doitw run_sev_snp_luks VOLUME={}",
    "{}: {} MiB, written {}; boot it: ./doitw run_sev_snp_luks VOLUME={}",
    "  volume {} stays as it is; boot it: ./doitw run_sev_snp_luks VOLUME={}",
)
def test_the_command_that_boots_a_volume(
    told: Told, ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_source(ground.build)
    volume = ground.run()
    hint = told.hint(lambda: volume.make(source))
    assert ground.run(volume=word(hint, "VOLUME")) == volume
    (line,) = left(ground.base / "data")
    assert ground.run(volume=word(told.read(line), "VOLUME")) == volume
    capsys.readouterr()
    newer = make_source(tmp_path / "newer", 2)
    named: dict[str, Any] = {"header": newer.directory / "header.bin", "earlier": ground.earlier}
    say_what_stays(**named, data_dir=ground.base / "data")
    assert ground.run(volume=word(told.read(capsys.readouterr().out), "VOLUME")) == volume


@remedies(
    "sevsnp.guests.volume_guest",
    "another volume, which is not booted now: ./doitw {} VOLUME={}",
    "give its volume with VOLUME=…, or leave VM_CONFIG out",
)
def test_a_volume_beside_another(told: Told, ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(ground.build)
    first = ground.run()
    own = first.path / CONFIGS[0]
    make_source(ground.build, 2)
    capsys.readouterr()
    second = ground.run()
    assert ground.run(volume=word(told.read(capsys.readouterr().out), "VOLUME")) == first
    wrong = partial(ground.run, volume=second.uuid, vm_config=own)
    told.instead(wrong, lambda: ground.run(volume=first.uuid, vm_config=own))
    told.instead(wrong, lambda: ground.run(volume=second.uuid))


@remedies(
    "sevsnp.guests.volume_guest",
    "note: volume {} was booted {} times from another copy of its disk, and {} refuses an older one; go on with that "
    "copy: ./doitw adopt_luks IMAGE=… — or, if it is lost, make a new volume: ./doitw forget _luks_image, then "
    "./doitw setup_luks",
)
def test_a_volume_whose_written_disk_is_elsewhere(
    told: Told, ground: Ground, clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_source(ground.build)
    luks_key.write_record(ground.base / "config", source.uuid, Record("made", generation=3))
    ground.run()
    hint = told.read(capsys.readouterr().out)
    told.obey(hint.partition(", then ")[0])
    make_source(ground.build, 2)
    ground.run()
    assert "times from another copy" not in capsys.readouterr().out


@remedies("sevsnp.volumes.boot", "run: ./doitw setup_luks")
def test_nothing_to_update(told: Told, tmp_path: Path) -> None:
    source = make_source(tmp_path / "build" / "luks")
    told.hint(
        lambda: update_volume(
            directory=source.directory, configs=source.configs, data_dir=tmp_path / "data", volume="", boot={}
        )
    )
    make_source(tmp_path / "build" / "luks", vcpus=2)  # with what is built and set now
    assert read_vm_config(source.configs / CONFIGS[0]).launch.vcpus == 2


@remedies("sevsnp.host.volume", "./doitw setup_luks", "make it again with: ./doitw setup_luks")
@remedies("sevsnp.images.luks2", "make the image again: ./doitw setup_luks")
def test_missing_and_damaged_outputs_of_setup_luks(told: Told, tmp_path: Path) -> None:
    source = make_source(tmp_path / "luks")

    def again() -> None:
        make_source(tmp_path / "luks")

    def measured() -> None:
        measured_header(read_cmdline(source.directory / "cmdline.snp"))

    (tmp_path / "state").mkdir()
    launch = read_vm_config(source.configs / CONFIGS[0]).launch
    told.instead(
        lambda: on_copy(dataclasses.replace(launch, disks=()), tmp_path / "state"),
        lambda: on_copy(launch, tmp_path / "state"),
    )
    (source.directory / "cmdline.snp").write_text("console=ttyS0")
    told.mended(measured, again)
    (source.directory / "header.bin").write_bytes(bytes(1 << 20))
    told.mended(lambda: Luks2.read(source.directory / "header.bin"), again)


@remedies("sevsnp.host.volume", "move it away, or remove it with all that the guest wrote there: rm {}")
def test_a_copy_of_another_volume(told: Told, tmp_path: Path) -> None:
    state = tmp_path / "a state"
    state.mkdir()
    launch = launch_of(tmp_path / "made", b"this volume")
    on_copy(launch_of(tmp_path / "other", b"another volume"), state)
    told.mends(lambda: on_copy(launch, state))


@remedies("sevsnp.volumes.boot", "use an older copy of this disk: this one was changed")
@remedies("sevsnp.images.luks2", "use an older copy of this disk: this one was changed")
def test_a_changed_disk(told: Told, tmp_path: Path) -> None:
    ours = make_header(KEY)
    changed = metadata_of(ours)
    changed["segments"]["0"]["encryption"] = "cipher_null-ecb"
    other = Luks2.parse(with_metadata(ours, changed))
    told.instead(lambda: check_ours(other), lambda: check_ours(Luks2.parse(ours)))
    disk = tmp_path / "luks.img"
    null = CRYPT.replace("capi:authenc(hmac(sha256),xts(aes))-random", "cipher_null-ecb")
    told.instead(lambda: check_tables(disk, null, INTEGRITY), lambda: check_tables(disk, CRYPT, INTEGRITY))


HOLDER = """
import fcntl, os, struct, sys, time
from pathlib import Path
from sevsnp.host.state import Run, held
disk = os.open(sys.argv[2], os.O_RDWR)
fcntl.fcntl(disk, 37, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0))  # as QEMU does
with held(Path(sys.argv[1]), Run("luks", "emulated", "c.toml", 1, 2), ""):
    print("held", flush=True)
    time.sleep(600)
"""


@remedies("sevsnp.volumes.boot", "end it first: ./doitw stop")
def test_a_disk_that_a_guest_runs_on(told: Told, clone: Path, tmp_path: Path) -> None:
    disk = make_source(tmp_path / "luks").directory / "luks.img"
    argv = [sys.executable, "-c", HOLDER, str(clone / "build" / "run" / "luks"), str(disk)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            told.mends(lambda: _check_unused(disk))
        finally:
            holder.kill()


@remedies("sevsnp.volumes.keys", "./doitw keys_prune removes it", "{}; to remove it: rm {}")
def test_keys_without_a_volume(told: Told, clone: Path, tmp_path: Path) -> None:
    config_dir = Path(told.variables["CONFIG_DIR"])
    told.variables["DATA_DIR"] = str(tmp_path / "data")
    place = str(clone / "build" / "luks" / "luks.img")
    luks_key.write_record(config_dir, uuid_of(1), Record("given", place=place))
    said = told.doitw("keys").stdout
    assert "1" in said and told.shell(told.read(said).removesuffix(" removes it")).returncode == 0
    assert luks_key.known_volumes(config_dir) == []
    luks_key.write_record(config_dir, uuid_of(2), Record("given", generation=1, place=place))
    told.obey(told.read(told.doitw("keys").stdout))
    assert luks_key.known_volumes(config_dir) == []


@pytest.fixture
def earlier(checkout: Built, told: Told, tmp_path: Path) -> Iterator[Source]:
    """A volume whose disk lies elsewhere, and which setup_luks of the checkout has made."""
    source = make_source(tmp_path / "an earlier one")
    told.variables["DATA_DIR"] = str(tmp_path / "my data")
    names = ("header.bin", "header.sha256", "tables.sha256")
    luks = checkout.build / "luks"
    luks.mkdir(exist_ok=True)
    for name in names:
        if (luks / name).exists():
            (luks / name).rename(luks / f"{name}.kept")  # a hard link: what is behind it is every test's
        (luks / name).write_bytes((source.directory / name).read_bytes())
    yield source
    for name in names:
        (luks / name).unlink()
        if (luks / f"{name}.kept").exists():
            (luks / f"{name}.kept").rename(luks / name)
    luks_key.forget(checkout.config_dir, source.uuid)


@pytest.mark.full
@remedies(
    "sevsnp.volumes.directory", "{}: volume {}, written under an earlier release; keep it: ./doitw adopt_luks IMAGE={}"
)
@remedies("sevsnp.guests.volume_guest", "go on with it: ./doitw adopt_luks IMAGE={}")
@remedies(
    "sevsnp.volumes.boot",
    "choose one: IMAGE=…/luks.img",
    "give another: IMAGE=…",
    "expected luks.img of an encrypted guest: IMAGE=…",
    "set CONFIG_DIR to where it was made, or give its key: LUKS_KEY_FILE=…",
    "give the right one: LUKS_KEY_FILE=…",
    "LUKS_KEY_FILE=… ./doitw adopt_luks IMAGE={}",
    "boot it: ./doitw run_sev_snp_luks VOLUME={}",
    "volume {}: {}: ./doitw run_sev_snp_luks VOLUME={}",
)
@remedies("sevsnp.vm_config.config", "./doitw update_luks VOLUME={}")
@remedies("sevsnp.qemu.process", "make it again with: {}")
def test_a_disk_from_elsewhere(told: Told, checkout: Built, earlier: Source, ground: Ground, tmp_path: Path) -> None:
    image, data = earlier.directory / "luks.img", tmp_path / "my data"
    key, wrong = tmp_path / "key", tmp_path / "wrong"
    for path, text in ((key, KEY), (wrong, b"another")):
        path.write_bytes(text)
        path.chmod(0o600)

    def adopt(image: Path | None, key_file: str | Path = "") -> None:
        directories = {"directory": checkout.build / "luks", "data_dir": data, "config_dir": checkout.config_dir}
        adopt_volume(image=image, key_file=str(key_file), boot={}, appliance={}, **directories)

    # Each time what was said is done, and the next that is missing is said.
    assert "IMAGE" in told.hint(lambda: adopt(None))
    told.hint(lambda: adopt(tmp_path / "nonsuch"))
    told.hint(lambda: adopt(checkout.project / "README.md"))
    assert "CONFIG_DIR" in told.hint(lambda: adopt(image))
    told.hint(lambda: adopt(image, wrong))
    # As a run of it finds the disk of its volume, written under an earlier release.
    make_source(ground.build)
    ground.earlier.parent.mkdir(parents=True)
    ground.earlier.symlink_to(image)
    assert "IMAGE=" in told.hint(ground.run)
    luks_key.write_record(checkout.config_dir, earlier.uuid, Record("given"))
    without = told.hint(lambda: adopt(image))
    assert without.startswith("LUKS_KEY_FILE=… ")
    assert told.read(note_earlier(image, data)).endswith(without.partition("… ")[2])
    done = told.shell(without.replace("…", f"'{key}'"))
    assert done.returncode == 0, done.stdout
    volume = Volume.of(data, word(told.read(done.stdout), "VOLUME"))
    assert volume.exists and ground.run(data_dir=data, volume=volume.uuid) == volume

    config = volume.path / CONFIGS[1]
    read_vm_config(config).launch.kernel.path.unlink()
    told.mends(lambda: check_files(read_vm_config(config).launch, disks=False))
    config.unlink()
    told.obey(failure(lambda: read_vm_config(config)))
    check_files(read_vm_config(config).launch, disks=False)
    again = told.doitw("update_luks", f"VOLUME={volume.uuid}")
    assert ground.run(data_dir=data, volume=word(told.read(again.stdout), "VOLUME")) == volume
    assert hashlib.sha256(image.read_bytes()).hexdigest() == read_vm_config(config).launch.disks[0].sha256
    assert json.loads((checkout.config_dir / "volumes" / f"{volume.uuid}.json").read_text())["key"] == "given"
