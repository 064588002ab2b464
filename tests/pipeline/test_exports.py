# SPDX-License-Identifier: Apache-2.0
"""doit export_*: the built guest for other launchers, with the launch digest of its VM config."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import pytest
import yaml

from sevsnp.measurement.launch_digest import launch_digest_of
from tests.conftest import Built
from tests.support.copies import copy_built

CONFIG = "build/verity/vm-config-verity.toml"


@pytest.fixture(scope="module")
def copy(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    directory = tmp_path_factory.mktemp("exports, <&>")
    yield copy_built(built, directory / "project")
    shutil.rmtree(directory)


def said(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def test_libvirt(copy: Built) -> None:
    output = said(copy.doit("export_libvirt", "MEMORY=3G", "LIBVIRT_NETWORK=lab"), 0)
    domain = ElementTree.parse(copy.build / "launchers" / "sevsnp-verity.xml").getroot()
    config = copy.config("snp")
    assert domain.findtext("os/cmdline") == config.launch.cmdline.path.read_text()
    assert domain.findtext("os/kernel") == str(config.launch.kernel.path)
    assert domain.findtext("memory") == str(3 << 30)
    assert [source.attrib for source in domain.findall("devices/interface/source")] == [{"network": "lab"}]
    digest = launch_digest_of(config.launch).hex()
    assert config.require_reference().launch_digest.hex() == digest
    assert domain.findall("metadata/*")[0].attrib["launchDigest"] == digest and f"launch digest {digest}" in output
    said(copy.doit("clean", "export_libvirt"), 0)
    assert not (copy.build / "launchers").exists()


def test_kubevirt(copy: Built) -> None:
    words = ("export_kubevirt", "KUBEVIRT_KERNEL=registry.example/kernel@sha256:0")
    refused = said(copy.doit(*words, check=False), 1)
    assert "files.firmware: KubeVirt starts the firmware of its virt-launcher image" in refused
    assert not (copy.build / "launchers" / "sevsnp-verity.yaml").exists()
    said(copy.doit(*words, "KUBEVIRT_FIRMWARE=build/firmware/OVMF.fd", "NAME=one"), 0)
    machine = yaml.safe_load((copy.build / "launchers" / "one.yaml").read_text())
    digest = copy.config("snp").require_reference().launch_digest.hex()
    assert machine["metadata"]["annotations"] == {"openend2e-sevsnp/launch-digest": digest}


def test_vmspawn(copy: Built) -> None:
    refused = said(copy.doit("export_vmspawn", check=False), 1)
    fields = re.findall(r"^ +((?:launch|files|disk)\S*)", refused, re.MULTILINE)
    assert {"launch.vcpu_model:", "launch.host_data:", "files.cmdline:"} <= set(fields)


def test_an_emulated_guest_is_not_exported(copy: Built) -> None:
    emulated = CONFIG.replace(".toml", ".emulated.toml")
    output = said(copy.doit("export_libvirt", f"VM_CONFIG={emulated}", check=False), 1)
    assert "would run this guest unprotected" in output


def test_a_changed_file(copy: Built) -> None:
    tree = copy.build / "verity" / "hash-tree.img"
    data = tree.read_bytes()
    tree.unlink()  # what was built is hard-linked to what other tests use
    tree.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "hash-tree.img: found SHA-256" in said(copy.doit("export_libvirt", check=False), 1)
    tree.write_bytes(data)
