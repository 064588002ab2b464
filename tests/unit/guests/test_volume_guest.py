# SPDX-License-Identifier: Apache-2.0
"""The choice of a guest's disk and of the VM config for its owner, without the guest and without the owner's part."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.guests import volume_guest
from sevsnp.guests.volume_guest import attest_volume, run_volume
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record
from sevsnp.qemu.run_options import RunOptions
from sevsnp.vm_config.config import read_vm_config, render_vm_config
from sevsnp.volumes.directory import CONFIGS, Source, Volume, note_earlier, say_what_stays
from tests.support.luks_volume import make_header
from tests.support.written_volume import make_source, uuid_of


@dataclasses.dataclass
class Ground:
    """A checkout's build/luks and a user's volumes; ``ran`` and ``attested`` is what was asked for."""

    base: Path
    ran: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    attested: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def build(self) -> Path:
        return self.base / "build" / "luks"

    @property
    def earlier(self) -> Path:
        return self.base / "build" / "run" / "luks" / "luks.img"

    def run(self, **changes: Any) -> Volume:
        options = RunOptions(Path("qemu"), 1 << 28, 40_001, 40_002, self.base / "state")
        named: dict[str, Any] = {
            "directory": self.build, "configs": self.build, "data_dir": self.base / "data",
            "config_dir": self.base / "config", "volume": "", "earlier": self.earlier, "vm_config": None, "asked": {},
            "platform": "auto", "options": options, "name": "luks",
        }  # fmt: skip
        run_volume(**{**named, **changes})
        return Volume(self.ran[-1]["volume"])

    def attest(self, **changes: Any) -> tuple[Path, Path]:
        named: dict[str, Any] = {
            "directory": self.build, "configs": self.build, "data_dir": self.base / "data", "volume": "",
            "vm_config": None, "platform": "emulated", "port": 1, "name": "luks", "runs": self.base / "runs",
        }  # fmt: skip
        attest_volume(**{**named, **changes})
        return self.attested[-1]["vm_config"], self.attested[-1]["header"]


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    found = Ground(tmp_path)

    def run(**named: Any) -> None:
        assert Volume(named["volume"]).in_use
        found.ran.append(named)

    monkeypatch.setattr(volume_guest, "run_workflow", run)
    monkeypatch.setattr(volume_guest, "luks", lambda **named: found.attested.append(named))
    return found


def with_floor(source: Source) -> None:
    """As `setup_luks MIN_TCB=any` writes it: another VM config for the same guest."""
    for name in CONFIGS:
        config = read_vm_config(source.configs / name)
        reference = dataclasses.replace(config.require_reference(), minimum_tcb="any", guest_svn=7)
        config.source.write_text(render_vm_config(dataclasses.replace(config, reference=reference)))


def another_guest(source: Source) -> None:
    """As after a change of what is measured."""
    for name in CONFIGS:
        config = read_vm_config(source.configs / name)
        reference = dataclasses.replace(config.require_reference(), launch_digest=hashlib.sha384(b"x").digest())
        config.source.write_text(render_vm_config(dataclasses.replace(config, reference=reference)))


def test_the_first_run_makes_the_directory_and_the_next_finds_it(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_source(ground.build)
    volume = ground.run()
    assert volume == Volume.of(ground.base / "data", source.uuid) and volume.exists
    assert ground.ran[0]["directory"] == volume.path and "making" in capsys.readouterr().out
    volume.image.write_bytes(b"what the guest wrote")
    assert ground.run() == volume and capsys.readouterr().out == ""
    with_floor(source)
    assert ground.run() == volume and "boots with the new files" in capsys.readouterr().out
    assert ground.run() == volume and capsys.readouterr().out == ""
    (source.directory / "kernel").write_bytes(b"newer, and no VM config for it")
    with_floor(source)
    another_guest(source)
    assert ground.run() == volume and "boots as before" in capsys.readouterr().out
    assert volume.image.read_bytes() == b"what the guest wrote"


def test_a_volume_updated_by_update_luks_stays_until_setup_luks_makes_another(ground: Ground, tmp_path: Path) -> None:
    source = make_source(ground.build)
    volume = ground.run()
    newer = make_source(tmp_path / "newer")
    with_floor(newer)
    assert volume.refresh(newer, taken=source.digest())
    ground.run()
    assert read_vm_config(volume.path / CONFIGS[0]).require_reference().minimum_tcb == "any"
    another_guest(source)
    ground.run()
    assert read_vm_config(volume.path / CONFIGS[0]).require_reference().minimum_tcb != "any"


def test_another_volume_is_started_beside_it_with_a_note(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(ground.build, 1)
    ground.run()
    make_source(ground.build, 2)  # setup_luks with other settings
    capsys.readouterr()
    assert ground.run().uuid == uuid_of(2)
    assert f"not booted now: ./doitw run_sev_snp_luks VOLUME={uuid_of(1)}" in capsys.readouterr().out
    assert ground.run(volume=uuid_of(1)).uuid == uuid_of(1)


def test_the_disk_of_an_earlier_release_is_named_with_adopt_luks(ground: Ground) -> None:
    source = make_source(ground.build)
    ground.earlier.parent.mkdir(parents=True)
    ground.earlier.write_bytes((source.directory / "luks.img").read_bytes())
    assert f"./doitw adopt_luks IMAGE={ground.earlier}" in note_earlier(ground.earlier, ground.base / "data")
    with pytest.raises(UserError, match="written under an earlier release") as refused:
        ground.run()
    assert refused.value.hint == f"go on with it: ./doitw adopt_luks IMAGE={ground.earlier}"
    Volume.of(ground.base / "data", source.uuid).make(source)  # as adopt_luks does
    ground.run()
    assert note_earlier(ground.earlier, ground.base / "data") == ""


def test_setup_luks_names_the_volumes_that_stay(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"earlier": ground.earlier, "data_dir": ground.base / "data"}
    make_source(ground.build, 1)
    ground.run()
    ground.earlier.parent.mkdir(parents=True)
    ground.earlier.write_bytes(make_header(b"key", 3))
    capsys.readouterr()
    say_what_stays(header=make_source(ground.build, 2).directory / "header.bin", **said)
    text = capsys.readouterr().out
    assert f"./doitw run_sev_snp_luks VOLUME={uuid_of(1)}" in text and "adopt_luks IMAGE=" in text
    make_source(ground.build, 1)
    ground.earlier.unlink()
    say_what_stays(header=ground.build / "header.bin", **said)
    assert capsys.readouterr().out == ""


def test_a_new_copy_of_a_volume_that_was_booted_elsewhere_gives_a_warning(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_source(ground.build)
    luks_key.write_record(ground.base / "config", source.uuid, Record("made", generation=4))
    ground.run()
    said = capsys.readouterr().out
    assert "was booted 4 times from another copy of its disk" in said and "./doitw adopt_luks IMAGE=" in said
    ground.run()
    assert "booted 4 times" not in capsys.readouterr().out, "said once, when it is made"


def test_a_vm_config_of_another_volume_is_refused(ground: Ground, tmp_path: Path) -> None:
    make_source(ground.build, 1)
    mine = ground.run()
    other = make_source(tmp_path / "other", 2)
    moved = tmp_path / "moved.toml"
    moved.write_text((other.configs / CONFIGS[1]).read_text().replace('path = "', 'path = "other/'))
    with pytest.raises(UserError, match=f"measures the header of another volume than {mine.uuid}"):
        ground.run(vm_config=moved)
    assert ground.run(vm_config=ground.build / CONFIGS[1]) == mine
    assert ground.ran[-1]["vm_config"] == ground.build / CONFIGS[1]
    assert ground.run(vm_config=other.configs / CONFIGS[1]).uuid == uuid_of(2), "it has its volume beside it"


def test_the_owner_uses_the_vm_config_that_the_guest_was_started_with(ground: Ground) -> None:
    source = make_source(ground.build)
    built = (ground.build / CONFIGS[1], ground.build / "header.bin")
    assert ground.attest() == built, "a guest on a host's machine has no directory here"
    volume = ground.run()
    own = (volume.path / CONFIGS[1], volume.path / "header.bin")
    assert ground.attest() == built and ground.attest(volume=volume.uuid[:6]) == own
    assert ground.attest(platform="snp")[0] == ground.build / CONFIGS[0]
    with volume.locked():
        assert ground.attest() == own
        with_floor(source)
        assert ground.attest() == built, "the same guest, and a newer word on what is accepted"
        another_guest(source)
        assert ground.attest() == own, "what was built since is not what runs"
    assert ground.attest() == built
    (ground.build / CONFIGS[0]).unlink()
    assert ground.attest() == own, "setup_luks did not come to its end"
    for path in ground.build.iterdir():
        path.unlink()
    assert ground.attest() == own
