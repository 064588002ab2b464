# SPDX-License-Identifier: Apache-2.0
"""When setup_luks makes a new volume: if the old volume's key is missing, differs, or is known to a host."""

import json
from pathlib import Path
from typing import Any

import pytest

from sevsnp.images.luks import _was_exposed
from sevsnp.images.luks_current import is_current, is_for_snp
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record
from sevsnp.qemu import platforms
from tests.support.written_volume import KEY, make_source


@pytest.fixture
def header(tmp_path: Path) -> Path:
    return make_source(tmp_path / "luks").directory / "header.bin"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


def keep(config_dir: Path, record: Record) -> None:
    uuid = "00000000-0000-4000-8000-000000000001"
    luks_key.write_record(config_dir, uuid, record)
    luks_key.key_path(config_dir, uuid).unlink(missing_ok=True)
    if record.key == "made":
        luks_key.key_path(config_dir, uuid).write_bytes(KEY)
        luks_key.key_path(config_dir, uuid).chmod(0o600)


def current(tmp_path: Path, header: Path, key_file: str | None = "", platform: str = "auto") -> bool:
    known: dict[str, Any] = {"qemu": tmp_path / "qemu", "probe_cache": tmp_path / "platform.json"}
    return is_current(header, tmp_path / "config", key_file, platform=platform, **known)


def test_a_volume_that_an_emulated_guest_opened_is_not_used_for_snp(tmp_path: Path, header: Path) -> None:
    keep(tmp_path / "config", Record("made"))
    assert all(current(tmp_path, header, platform=name) for name in ("auto", "snp", "emulated"))
    keep(tmp_path / "config", Record("made", exposed=True))
    assert current(tmp_path, header) and current(tmp_path, header, platform="emulated")
    assert not current(tmp_path, header, platform="snp")


def test_a_volume_that_a_confidential_guest_opened_is_not_used_for_emulation(tmp_path: Path, header: Path) -> None:
    keep(tmp_path / "config", Record("made", sent=True))
    assert current(tmp_path, header) and current(tmp_path, header, platform="snp")
    assert not current(tmp_path, header, platform="emulated")
    keep(tmp_path / "config", Record("made", sent=True, exposed=True))
    assert current(tmp_path, header, platform="emulated")


def test_platform_auto_means_snp_if_the_probe_found_snp(tmp_path: Path) -> None:
    qemu, probe_cache = tmp_path / "qemu", tmp_path / "platform.json"
    qemu.touch()
    assert not is_for_snp("auto", qemu, probe_cache)
    for answer, expected in (("", True), ("no /dev/kvm", False)):
        probe_cache.unlink(missing_ok=True)
        assert platforms._remembered(probe_cache, "snp", qemu, iter([answer]).__next__) == answer
        assert is_for_snp("auto", qemu, probe_cache) is expected
        assert not is_for_snp("emulated", qemu, probe_cache) and is_for_snp("snp", qemu, probe_cache)
    probe_cache.write_text(json.dumps({"snp of another boot": ""}))
    assert not is_for_snp("auto", qemu, probe_cache)


def test_a_volume_without_its_key_or_its_record_is_made_anew(tmp_path: Path, header: Path, key_file: Path) -> None:
    assert not current(tmp_path, header)
    keep(tmp_path / "config", Record("made"))
    assert current(tmp_path, header)
    luks_key.key_path(tmp_path / "config", "00000000-0000-4000-8000-000000000001").unlink()
    assert not current(tmp_path, header)
    assert current(tmp_path, header, str(key_file)), "it is given"
    keep(tmp_path / "config", Record("given"))
    assert current(tmp_path, header), "its user has it"
    assert current(tmp_path, tmp_path / "none"), "there is no volume: the task knows that itself"


def test_a_different_given_key_makes_a_new_volume(tmp_path: Path, header: Path, key_file: Path) -> None:
    keep(tmp_path / "config", Record("given"))
    assert current(tmp_path, header, str(key_file))
    key_file.write_bytes(b"another key")
    assert not current(tmp_path, header, str(key_file))
    keep(tmp_path / "config", Record("made"))
    assert not current(tmp_path, header, str(key_file))
    assert current(tmp_path, header, None), "end to end asks for none"


def test_a_key_that_an_emulated_guest_got_stays_exposed_in_a_new_volume(tmp_path: Path, header: Path) -> None:
    own, other = luks_key.Key(KEY, "LUKS_KEY"), luks_key.Key(b"another key", "LUKS_KEY")
    config_dir = tmp_path / "config"
    assert not _was_exposed(own, config_dir, [header]), "nothing is known of it"
    keep(config_dir, Record("given"))
    assert not _was_exposed(own, config_dir, [header])
    keep(config_dir, Record("given", exposed=True))
    assert _was_exposed(own, config_dir, [tmp_path / "none", header])
    assert not _was_exposed(other, config_dir, [header])
