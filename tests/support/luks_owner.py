# SPDX-License-Identifier: Apache-2.0
"""An owner with keys, a volume's header and records; and attest_luks against a guest that waits for its key."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record, write_record
from sevsnp.keys.pairs import ensure_keys
from sevsnp.keys.paths import Keys
from sevsnp.owner.luks import attest_luks, release_data_key
from sevsnp.vm_config.config import Launch, VmConfig, render_vm_config
from tests.support.evidence import REFERENCE, ROOT, launch, root
from tests.support.key_guest import KeyGuest, key_guest
from tests.support.luks_volume import make_header

KEY = b"the volume's own key"
UUID = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return ensure_keys(tmp_path / "config")


@pytest.fixture
def config_dir(keys: Keys) -> Path:
    return keys.owner_private.parent


@pytest.fixture
def header(tmp_path: Path) -> Path:
    path = tmp_path / "header.bin"
    path.write_bytes(make_header(KEY))
    return path


def keep(config_dir: Path, record: Record, key: bytes = KEY) -> None:
    write_record(config_dir, UUID, record)
    if record.key == "made":
        path = luks_key.key_path(config_dir, UUID)
        path.unlink(missing_ok=True)
        path.write_bytes(key)
        path.chmod(0o600)


def attest(config_dir: Path, header: Path, guest: KeyGuest, output: Path, **changes: Any) -> None:
    config = VmConfig(output / "vm-config.toml", dataclasses.replace(launch(), workflow="luks"), REFERENCE)
    output.mkdir(exist_ok=True)
    launched = {name: changes.pop(name) for name in ("platform", "host_data") if name in changes}
    config = dataclasses.replace(config, launch=dataclasses.replace(config.launch, **launched))
    config.source.write_text(render_vm_config(config))
    attest_luks(
        **{
            "vm_config": config.source,
            "header": header,
            "config_dir": config_dir,
            "key_file": "",
            "host": "127.0.0.1",
            "port": guest.port,
            "ssh_port": 2222,
            "emulated_root": root(),
            "user": "user",
            "template": ROOT / "templates" / "ssh_config.j2",
            "output": output,
            **changes,
        }
    )


def attest_data(config_dir: Path, guest: KeyGuest, output: Path, made: Launch, **changes: Any) -> None:
    """The release of the key of the data disk of ``made``, a launch of the verified workflow."""
    output.mkdir(exist_ok=True)
    own = launch()
    config = VmConfig(output / "vm-config.toml", dataclasses.replace(own, disks=made.disks), REFERENCE)
    config.source.write_text(render_vm_config(config))
    release_data_key(
        **{
            "vm_config": config.source,
            "config_dir": config_dir,
            "key_file": "",
            "host": "127.0.0.1",
            "port": guest.port,
            "emulated_root": root(),
            "output": output,
            "again": "./doitw attest_verity",
            **changes,
        }
    )


def waiting(keys: Keys, tmp_path: Path, header: Path, **options: Any) -> Any:
    return key_guest(keys, tmp_path, hashlib.sha256(header.read_bytes()).digest(), **options)
