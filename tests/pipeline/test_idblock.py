# SPDX-License-Identifier: Apache-2.0
"""doit idblock: its outputs, when it makes them again, and that a bundle and QEMU accept them."""

import base64
import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.measurement.id_block import check_identity, read_identity
from sevsnp.qemu.snp_options import snp_arguments
from sevsnp.vm_config.config import Launch, read_vm_config
from tests.conftest import Built
from tests.support.copies import copy_built, ran

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")

CONFIGS = ("vm-config-verity.toml", "vm-config-verity.emulated.toml")


@pytest.fixture(scope="module")
def copy(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    directory = tmp_path_factory.mktemp("idblock")
    yield copy_built(built, directory / "project")
    shutil.rmtree(directory)


def make_key(path: Path) -> Path:
    argv = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", str(path)]
    subprocess.run(argv, check=True, capture_output=True)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("keys")
    return {name: str(make_key(directory / f"{name}.pem")) for name in ("ID_KEY", "AUTHOR_KEY")}


def signed(copy: Built, name: str, directory: str = "verity/idblock") -> Launch:
    """The launch of a signed VM config; its ID block fits it."""
    config = read_vm_config(copy.build / directory / name)
    launch = config.launch
    assert launch.id_block and launch.id_auth
    identity = read_identity(launch.id_block.path, launch.id_auth.path)
    if config.reference:
        check_identity(identity, config.reference.launch_digest, launch.guest_policy)
        assert config.reference.id_key_digest == identity.id_key_digest
        assert config.reference.author_key_digest == identity.author_key_digest
    return launch


def doit(copy: Built, keys: dict[str, str], task: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return copy.doit(task, check=True, **{**keys, **more})


def qemu_takes(qemu: Path, properties: str) -> "subprocess.CompletedProcess[bytes]":
    """Whether QEMU makes such a sev-snp-guest; nothing is started."""
    none = ["-machine", "none", "-nodefaults", "-display", "none", "-monitor", "stdio"]
    argv: list[str | Path] = [qemu, *none, "-object", properties]
    return subprocess.run(argv, input=b"quit\n", capture_output=True, timeout=60, check=False)


def test_without_a_key_idblock_prints_how_to_make_one(copy: Built) -> None:
    done = copy.doit("idblock:verity", check=False)
    assert done.returncode and "ID_KEY: not set" in done.stdout and "openssl genpkey" in done.stdout
    assert "Traceback" not in done.stdout


def test_idblock_signs_both_vm_configs_once(copy: Built, keys: dict[str, str]) -> None:
    copy.doit("setup_verity")
    assert "idblock:verity" in ran(doit(copy, keys, "idblock:verity").stdout)
    for name in CONFIGS:
        signed(copy, name)
    assert ran(doit(copy, keys, "idblock:verity").stdout) == set()
    other = make_key(Path(keys["ID_KEY"]).with_name("other.pem"))
    before = (copy.build / "verity" / "idblock" / CONFIGS[0]).read_text()
    assert "idblock:verity" in ran(doit(copy, keys, "idblock:verity", ID_KEY=str(other)).stdout)
    assert (copy.build / "verity" / "idblock" / CONFIGS[0]).read_text() != before
    changed = doit(copy, keys, "idblock:verity", GUEST_SVN="3")
    assert "idblock:verity" in ran(changed.stdout)
    launch = signed(copy, CONFIGS[0])
    assert launch.id_block and launch.id_auth
    assert read_identity(launch.id_block.path, launch.id_auth.path).block.guest_svn == 3
    template = copy.project / "templates" / "vm-config.toml.j2"
    template.write_text(f"{template.read_text()}# edited\n")
    assert "idblock:verity" in ran(doit(copy, keys, "idblock:verity", GUEST_SVN="3").stdout)
    assert "# edited" in (copy.build / "verity" / "idblock" / CONFIGS[0]).read_text()


def test_a_bundle_has_the_id_block_if_a_key_is_set(copy: Built, keys: dict[str, str]) -> None:
    copy.doit("host_bundle")
    bundle = copy.build / "host-bundle"
    assert not list(bundle.glob("*.base64"))  # control
    doit(copy, keys, "host_bundle")
    assert len(list(bundle.glob("*.base64"))) == 4
    for name in ("launch.toml", "launch.emulated.toml"):
        launch = signed(copy, name, "host-bundle")
        assert launch.id_block and launch.id_block.path.parent == bundle.resolve()
    assert b"PRIVATE KEY" not in b"".join(path.read_bytes() for path in bundle.glob("*.base64"))
    assert "key_digest" not in (bundle / "launch.toml").read_text()


def test_qemu_accepts_the_properties_of_an_id_block(copy: Built, keys: dict[str, str]) -> None:
    doit(copy, keys, "idblock:verity")
    launch = signed(copy, CONFIGS[0])
    properties = snp_arguments(launch, 1 << 30, 51, 1)[-1]
    done = qemu_takes(copy.qemu, properties)
    assert done.returncode == 0, done.stderr
    assert launch.id_block
    short = base64.b64encode(base64.b64decode(launch.id_block.path.read_text())[:-1]).decode()
    damaged = properties.replace(launch.id_block.path.read_text().strip(), short)
    assert damaged != properties
    done = qemu_takes(copy.qemu, damaged)
    assert done.returncode == 1 and b"95 not equal to 96" in done.stderr
    plain = dataclasses.replace(launch, id_block=None, id_auth=None)
    assert qemu_takes(copy.qemu, snp_arguments(plain, 1 << 30, 51, 1)[-1]).returncode == 0
