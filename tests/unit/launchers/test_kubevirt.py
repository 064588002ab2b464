# SPDX-License-Identifier: Apache-2.0
"""The VirtualMachine of a VM config, read back field by field, and guests that a cluster would launch differently."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sevsnp.errors import UserError
from sevsnp.launchers.kubevirt import export_kubevirt
from sevsnp.system.template import find_template
from sevsnp.vm_config.config import VmConfig
from tests.support.evidence import write_file
from tests.support.exports import make_config, sign

IMAGE = "registry.example/guest/kernel@sha256:0123"


def exported(config: VmConfig, output: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "asked": {},
        "name": "",
        "memory": 3 << 30,
        "firmware": config.launch.firmware.path,
        "kernel_image": IMAGE,
        "template": find_template("kubevirt-vm.yaml.j2"),
        **changes,
    }
    export_kubevirt(vm_config=config.source, output=output, **arguments)
    (path,) = output.iterdir()
    return yaml.safe_load(path.read_text())


def values(document: Any) -> dict[str, object]:
    """Everything in the document that a VM config decides, by the name of the field there."""
    domain = document["spec"]["template"]["spec"]["domain"]
    snp, cpu, boot = domain["launchSecurity"]["snp"], domain["cpu"], domain["firmware"]["kernelBoot"]
    assert snp["kernelHashes"] is True
    assert (cpu["sockets"], cpu["maxSockets"], cpu["threads"]) == (1, 1, 1)
    assert boot["container"] == {"image": IMAGE, "kernelPath": "/vmlinuz", "initrdPath": "/initrd"}
    return {
        "vcpus": cpu["cores"],
        "vcpu_model": cpu["model"],
        "guest_policy": int(snp["policy"], 16),
        "host_data": base64.b64decode(snp["hostData"]),
        "cmdline": boot["kernelArgs"],
        "disks": [(disk["serial"], disk["disk"]) for disk in domain["devices"]["disks"]],
        "identity": tuple(base64.b64decode(snp[name]) for name in ("idBlock", "idAuth") if name in snp),
        "author": snp.get("authorKey", False),
    }


def expected(config: VmConfig) -> dict[str, object]:
    launch = config.launch
    return {
        **{name: getattr(launch, name) for name in ("vcpus", "vcpu_model", "guest_policy", "host_data")},
        "cmdline": launch.cmdline.path.read_text(),
        "disks": [(disk.role, {"bus": "virtio", "readonly": True}) for disk in launch.disks],
        "identity": (),
        "author": False,
    }


def test_the_document_has_the_fields_of_the_vm_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path / "made")
    document = exported(config, tmp_path / "out")
    assert values(document) == expected(config)
    digest = config.require_reference().launch_digest.hex()
    assert document["metadata"] == {
        "name": "sevsnp-verity",
        "annotations": {"openend2e-sevsnp/launch-digest": digest},
    }
    spec = document["spec"]["template"]["spec"]
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"]}
    assert claims == {role: f"sevsnp-verity-{role}" for role in ("verity-data", "verity-hash")}
    assert spec["domain"]["memory"] == {"guest": "3072Mi"}
    assert digest in capsys.readouterr().out


CHANGES: dict[str, Callable[[Path], Any]] = {
    "vcpus": lambda _: 4,
    "vcpu_model": lambda _: "EPYC-Genoa",
    "guest_policy": lambda _: 0x20000,
    "host_data": lambda _: b"\xff" * 32,
    "cmdline": lambda place: write_file(place / "words", b"x=<&>: #{{y}} 'z' - yes"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_that_is_changed(tmp_path: Path, field: str) -> None:
    place = tmp_path / "made"
    before = values(exported(make_config(place), tmp_path / "before"))
    config = make_config(place, **{field: CHANGES[field](place)})
    after = values(exported(config, tmp_path / "after"))
    assert after == expected(config)
    assert {name for name in after if after[name] != before[name]} == {field}


@pytest.mark.parametrize("author", [True, False])
def test_an_id_block(tmp_path: Path, author: bool) -> None:
    config, identity = sign(make_config(tmp_path / "made"), author=author)
    signed = {"identity": (identity.block.encode(), identity.auth.encode()), "author": author}
    assert values(exported(config, tmp_path / "out")) == {**expected(config), **signed}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no word of the firmware": ({"firmware": None}, r"files\.firmware: KubeVirt starts the firmware of its"),
    "another firmware": (
        {"firmware": Path(__file__)},
        r"files\.firmware: the cluster's is .*/test_kubevirt\.py with SHA-256 [0-9a-f]{64}",
    ),
    "no image of the kernel": ({"kernel_image": ""}, r"files\.kernel, files\.initrd: KubeVirt takes them from"),
    "no container image": ({"kernel_image": "a b\nc"}, "KUBEVIRT_KERNEL=a b"),
    "a device": ({"firmware": Path("/dev/null")}, "/dev/null: cannot read the firmware: not a regular file"),
    "no firmware file": ({"firmware": Path("/nonsuch")}, "/nonsuch: cannot read the firmware"),
    "no name for Kubernetes": ({"name": "Second.One"}, r"NAME=Second\.One: expected a name for Kubernetes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_guests_that_a_cluster_would_launch_differently_are_refused(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    config = make_config(tmp_path / "made")
    exported(config, tmp_path / "control")
    with pytest.raises(UserError, match=message):
        exported(config, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_all_fields_are_named_at_once(tmp_path: Path) -> None:
    config = make_config(tmp_path / "made")
    with pytest.raises(UserError) as refused:
        exported(config, tmp_path / "out", firmware=None, kernel_image="")
    assert "files.firmware:" in str(refused.value) and "files.kernel, files.initrd:" in str(refused.value)
