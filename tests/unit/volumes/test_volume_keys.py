# SPDX-License-Identifier: Apache-2.0
"""Which keys are kept: those that a disk or a guest may still need."""

from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record
from sevsnp.volumes.directory import Volume
from sevsnp.volumes.keys import drop_replaced, list_keys, prune_keys, volume_keys
from tests.support.written_volume import KEY, make_source, uuid_of


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    return tmp_path / "config"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Where setup_luks of this checkout has its image."""
    return tmp_path / "checkout" / "build" / "luks" / "luks.img"


def keep(config_dir: Path, seed: int, record: Record) -> str:
    uuid = uuid_of(seed)
    luks_key.write_record(config_dir, uuid, record)
    if record.key == "made":
        path = luks_key.key_path(config_dir, uuid)
        path.write_bytes(KEY)
        path.chmod(0o600)
    return uuid


def there(config_dir: Path) -> set[str]:
    return set(luks_key.known_volumes(config_dir))


def test_only_the_key_of_a_replaced_volume_is_removed(config_dir: Path, image: Path, tmp_path: Path) -> None:
    place, data = str(image), tmp_path / "data"
    make_source(image.parent, 1)
    current = keep(config_dir, 1, Record("made", place=place))
    keep(config_dir, 2, Record("made", place=place))  # replaced, or its setup_luks was killed
    keep(config_dir, 3, Record("given", place=place))
    written = Volume.of(data, keep(config_dir, 4, Record("made", place=place)))
    written.make(make_source(tmp_path / "four", 4))
    elsewhere = make_source(tmp_path / "bundle", 5)
    bundled = keep(config_dir, 5, Record("made", place=place))
    opened = {
        keep(config_dir, 6, Record("made", generation=1, place=place)),
        keep(config_dir, 7, Record("made", exposed=True, place=place)),
        keep(config_dir, 8, Record("made", sent=True, place=place)),
    }
    other = keep(config_dir, 9, Record("made", place=str(tmp_path / "another" / "build" / "luks" / "luks.img")))
    disks = [image, elsewhere.directory / "luks.img"]
    drop_replaced(config_dir=config_dir, image=image, disks=disks, data_dir=data)
    assert there(config_dir) == {current, written.uuid, bundled, other, *opened}
    assert not luks_key.key_path(config_dir, uuid_of(2)).exists()


def test_keys_of_an_earlier_release_count_as_sent(config_dir: Path) -> None:
    uuid = keep(config_dir, 1, Record("made"))
    path = luks_key.key_path(config_dir, uuid).with_suffix(".json")
    path.write_text('{"format": 1, "key": "made", "generation": 0, "exposed": false}\n')
    assert luks_key.read_record(config_dir, uuid) == Record("made", sent=True)
    (found,) = volume_keys(config_dir, [], config_dir)
    assert not found.unused


def test_prune(config_dir: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout, data = tmp_path / "checkout", tmp_path / "data"
    make_source(image.parent, 1)
    another = tmp_path / "another" / "build" / "luks" / "luks.img"
    make_source(another.parent, 2)
    kept = {
        keep(config_dir, 1, Record("made", place=str(image))),
        keep(config_dir, 2, Record("made", place=str(another))),
    }
    unused = keep(config_dir, 3, Record("made", place=str(image)))
    gone = keep(config_dir, 4, Record("made", place=str(tmp_path / "gone" / "build" / "luks" / "luks.img")))
    named = {
        keep(config_dir, 5, Record("made", generation=3, place=str(image))),
        keep(config_dir, 6, Record("made", place=str(another))),  # another run may be about to make it
    }
    damaged = keep(config_dir, 7, Record("made", place=str(image)))
    luks_key.key_path(config_dir, damaged).with_suffix(".json").write_text("{}")
    prune_keys(config_dir=config_dir, checkout=checkout, disks=[image], data_dir=data)
    said = capsys.readouterr().out
    assert there(config_dir) == {*kept, *named, damaged}
    assert all(f"removed: {uuid}" in said for uuid in (unused, gone)) and "2 keys removed" in said
    for uuid in (*named, damaged):
        assert f"left: {uuid}" in said and f"rm {luks_key.key_path(config_dir, uuid)} " in said
    assert not any(uuid in said for uuid in kept)


def test_the_list(config_dir: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(image.parent, 1)
    keep(config_dir, 1, Record("made", generation=2, exposed=True, place=str(image)))
    keep(config_dir, 2, Record("given"))
    keep(config_dir, 3, Record("made", generation=1))
    list_keys(config_dir=config_dir, key_dirs=[tmp_path / "e2e"], disks=[image], data_dir=tmp_path / "data")
    said = capsys.readouterr().out
    assert f"{uuid_of(1)}: made, generation 2, exposed; {image}\n" in said
    assert f"{uuid_of(2)}: given, generation 0, never opened; belongs to nothing\n    ./doitw keys_prune" in said
    assert f"{uuid_of(3)}: made, generation 1; belongs to nothing\n" in said and "rm " in said
    assert "user key: " in said and "owner certificate: " in said and KEY.decode() not in said


def test_a_forgotten_key_is_removed(config_dir: Path) -> None:
    uuid = keep(config_dir, 1, Record("made"))
    luks_key.forget(config_dir, uuid)
    luks_key.forget(config_dir, uuid)
    assert there(config_dir) == set()
    with pytest.raises(UserError, match="expected a UUID"):
        luks_key.forget(config_dir, "../x")
