# SPDX-License-Identifier: Apache-2.0
"""A verified guest with a data disk, released: signed ID block, manifest and host bundle; the data is kept there."""

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.e2e.guest import free_port
from sevsnp.host.console import MARKER
from sevsnp.images.data_disk import HEADER
from sevsnp.images.luks2 import Luks2
from sevsnp.keys.luks_key import read_record
from sevsnp.owner.luks import release_data_key
from sevsnp.vm_config.config import read_vm_config
from tests.boot.test_written_volume import WAITING
from tests.conftest import Built
from tests.pipeline.test_bundle import running, wait_for_words
from tests.pipeline.test_idblock import make_key
from tests.support.copies import copy_with_keys
from tests.support.waiting import NET

pytestmark = [
    pytest.mark.boot,
    pytest.mark.full,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here"),
]

SETTINGS = ("DATA_SIZE=32M", "PLATFORM=emulated")


@pytest.fixture(scope="module")
def released(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """A project of its own with everything that is given to a host and to other owners."""
    directory = tmp_path_factory.mktemp("released")
    copy = copy_with_keys(built, directory)
    keys = [f"{name}={make_key(directory / f'{name}.pem')}" for name in ("ID_KEY", "AUTHOR_KEY")]
    copy.doit("setup_verity", "idblock:verity", "host_bundle", "manifest", *SETTINGS, *keys)
    yield copy
    shutil.rmtree(directory)


@pytest.fixture
def host(released: Built, tmp_path: Path) -> Iterator[Path]:
    """The bundle, as its host has it."""
    bundle = tmp_path / "host bundle"
    shutil.copytree(released.build / "host-bundle", bundle, symlinks=True)
    yield bundle
    shutil.rmtree(bundle)


@pytest.fixture
def path(built: Built, tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "qemu-system-x86_64").symlink_to(built.qemu)
    return tmp_path / "bin"


def test_the_manifest_lists_the_data_disk(released: Built) -> None:
    assert "launch digests are as the manifest says" in released.doit("verify_manifest", *SETTINGS).stdout
    document = json.loads((released.build / "manifest.json").read_text())
    volume = read_vm_config(released.build / "verity" / "vm-config-verity.emulated.toml").launch.written
    assert volume
    name = volume.path.resolve().relative_to(released.build.resolve()).as_posix()
    assert any(name in str(one) for one in document["artefacts"])


@contextlib.contextmanager
def opened(released: Built, host: Path, path: Path, output: Path) -> Iterator[None]:
    """./run on the host, until the guest has its key from the owner and hands over to its root."""
    log, state = host / "state" / "serial.log", host / "state"
    log.unlink(missing_ok=True)
    attest_port = free_port()
    ports = ("--ssh-port", str(free_port()), "--attest-port", str(attest_port), "--memory", "1G")
    with running(host, path, *ports, ports=False) as process:
        wait_for_words(process, log, WAITING)
        release_data_key(
            vm_config=released.build / "verity" / "idblock" / "vm-config-verity.emulated.toml",
            config_dir=released.config_dir, key_file="", host="127.0.0.1", port=attest_port,
            emulated_root=state / "ark.pem", output=output, again="",
        )  # fmt: skip
        wait_for_words(process, log, MARKER)
        yield
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=NET)


def test_the_bundle_s_guest_gets_its_key_and_keeps_its_disk(
    released: Built, host: Path, path: Path, tmp_path: Path
) -> None:
    config = read_vm_config(released.build / "verity" / "idblock" / "vm-config-verity.emulated.toml")
    launched, volume = read_vm_config(host / "launch.emulated.toml").launch, config.launch.written
    assert launched.id_block and launched.written and volume
    uuid = Luks2.read(volume.path.with_name(HEADER)).uuid
    assert config.require_reference().id_key_digest  # what the owner demands of the report
    made = launched.written.path.read_bytes()
    for generation in (1, 2):
        output = tmp_path / str(generation)
        output.mkdir()
        with opened(released, host, path, output):
            assert read_record(released.config_dir, uuid).generation == generation
    # The guest wrote to the copy of this host alone.
    assert launched.written.path.read_bytes() == made
    assert (host / "state" / f"{launched.written.role}.img").read_bytes() != made
