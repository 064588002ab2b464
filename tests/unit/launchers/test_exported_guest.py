# SPDX-License-Identifier: Apache-2.0
"""The guest of an export equals that of its VM config: checked as for a launch, with the digest of its own files."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.launchers.guest import check_text
from sevsnp.launchers.kubevirt import export_kubevirt
from sevsnp.launchers.libvirt import export_libvirt
from sevsnp.launchers.vmspawn import export_vmspawn
from sevsnp.measurement.id_block import make_identity
from sevsnp.measurement.signed_config import block_of, with_identity
from sevsnp.system.files import sha256_file
from sevsnp.system.template import find_template
from sevsnp.vm_config.config import Disk, VmConfig
from tests.support.exports import VOLUME_HEADER, guest_of, make_config, make_volume, sign, written
from tests.unit.measurement.test_id_block import AUTHOR_KEY, ID_KEY


def test_the_exported_guest_has_the_digest_of_its_files(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    guest = guest_of(config)
    assert guest.digest == config.require_reference().launch_digest
    assert (guest.name, guest.read_only, guest.id_block, guest.has_author) == ("sevsnp-verity", True, "", False)
    assert guest_of(config, name="second").name == "second"
    assert guest_of(config, memory=(300 << 20) + 5).memory == 300 << 20


def test_a_host_bundles_launch_file_has_no_reference(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    digest = guest_of(config).digest
    assert guest_of(written(dataclasses.replace(config, reference=None))).digest == digest


def emulated(config: VmConfig) -> None:
    written(dataclasses.replace(config, launch=dataclasses.replace(config.launch, platform="emulated")))


def another_digest(config: VmConfig) -> None:
    reference = dataclasses.replace(config.require_reference(), launch_digest=bytes(48))
    written(dataclasses.replace(config, reference=reference))


def no_policy(config: VmConfig) -> None:
    written(dataclasses.replace(config, launch=dataclasses.replace(config.launch, guest_policy=0)))


def edited_cpu(config: VmConfig) -> None:
    config.source.write_text(config.source.read_text().replace("EPYC-v4", "EPYC-Genoa"))


def another_guests_block(config: VmConfig) -> None:
    block = dataclasses.replace(block_of(config), launch_digest=b"\1" * 48)
    written(with_identity(config, make_identity(block, ID_KEY, AUTHOR_KEY), config.source.parent))


def lost_block(config: VmConfig) -> None:
    sign(config)
    (config.source.parent / "auth-block.base64").unlink()


BAD: dict[str, tuple[Callable[[VmConfig], object], str]] = {
    "no VM config": (lambda config: config.source.unlink(), "no such VM config"),
    "an emulated one": (emulated, "an emulated VM config: a launcher would run this guest unprotected"),
    "a kernel that is gone": (lambda config: config.launch.kernel.path.unlink(), r"kernel: no such file \(kernel"),
    "an ID block that is gone": (lost_block, r"auth-block\.base64: cannot be read: No such file"),
    "a disk of another size": (lambda config: config.launch.disks[1].path.write_bytes(b""), "found 0 bytes"),
    "another kernel": (lambda config: config.launch.kernel.path.write_bytes(b"x"), r"the VM config says .*\(kernel\)"),
    "another digest": (another_digest, "reference.launch_digest: found 000"),
    "another CPU than measured": (edited_cpu, r"reference.launch_digest: found .*, its files give"),
    "no guest policy": (no_policy, "guest_policy: found 0x0"),
    "the ID block of another guest": (another_guests_block, "BAD_MEASUREMENT"),
}


@pytest.mark.parametrize("case", BAD)
def test_guests_that_must_not_be_exported_are_refused(tmp_path: Path, case: str) -> None:
    spoil, message = BAD[case]
    config = make_config(tmp_path)
    guest_of(config)  # control
    spoil(config)
    with pytest.raises(UserError, match=message):
        guest_of(config)


def test_a_setting_that_the_vm_config_has_fixed(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    guest_of(config, asked={"CPUS": 1, "MEMORY": 1 << 30})
    with pytest.raises(UserError, match=r"CPUS=2: .* was made for CPUS=1"):
        guest_of(config, asked={"CPUS": 2})


def test_files_on_another_host(tmp_path: Path) -> None:
    config, _ = sign(make_config(tmp_path))
    launch = guest_of(config, files="/srv/guest, one").launch
    assert launch.kernel.path == Path("/srv/guest, one/kernel")
    assert [disk.path.name for disk in launch.disks] == ["verity-data.img", "verity-hash.img"]
    assert {disk.path.parent for disk in launch.disks} == {Path("/srv/guest, one")}
    with pytest.raises(UserError, match="EXPORT_FILES=guest: expected an absolute path"):
        guest_of(config, files="guest")


def test_two_files_of_one_name_on_another_host(tmp_path: Path) -> None:
    other = tmp_path / "other" / "verity-data.img"
    other.parent.mkdir()
    other.write_bytes(b"tree")
    config = make_config(tmp_path)
    tree = Disk("verity-hash", other, 4, sha256_file(other))
    config = written(
        dataclasses.replace(config, launch=dataclasses.replace(config.launch, disks=(config.launch.disks[0], tree)))
    )
    guest_of(config)  # control
    with pytest.raises(UserError, match=r"a second file named verity-data\.img"):
        guest_of(config, files="/srv")


def test_an_encrypted_guest_writes_only_to_its_volume(tmp_path: Path) -> None:
    config, disk = make_volume(tmp_path)
    with pytest.raises(UserError, match="its guest writes to its disk, expected the VM config of a volume"):
        guest_of(config)
    disk.write_bytes(VOLUME_HEADER + b"what the guest wrote".ljust(8192, b"."))
    guest = guest_of(config)
    assert [item.path for item in guest.launch.disks] == [disk] and not guest.read_only
    assert guest.launch.disks[0].sha256 != sha256_file(disk)
    disk.write_bytes(bytes(16384))
    with pytest.raises(UserError, match="the disk of another volume"):
        guest_of(config)


def test_an_encrypted_guest_outside_of_volumes(tmp_path: Path) -> None:
    config, _ = make_volume(tmp_path)
    copy = tmp_path / "luks"
    shutil.copytree(config.source.parent, copy)
    (copy / "luks.img").write_bytes(VOLUME_HEADER + bytes(8192))
    with pytest.raises(UserError, match="its guest writes to its disk"):
        guest_of(dataclasses.replace(config, source=copy / config.source.name))


EXPORTS: dict[str, Callable[[VmConfig, Path], None]] = {
    "libvirt": lambda config, output: export_libvirt(
        **asked_for(config), files="", network="default", template=find_template("libvirt-domain.xml.j2"), output=output
    ),
    "kubevirt": lambda config, output: export_kubevirt(
        **asked_for(config),
        firmware=config.launch.firmware.path,
        kernel_image="registry.example/kernel",
        template=find_template("kubevirt-vm.yaml.j2"),
        output=output,
    ),
    "vmspawn": lambda config, _: export_vmspawn(**asked_for(config)),
}


def asked_for(config: VmConfig) -> dict[str, Any]:
    return {"vm_config": config.source, "asked": {}, "name": "", "memory": 1 << 30}


@pytest.mark.parametrize("launcher", EXPORTS)
def test_no_launcher_gets_an_emulated_guest(tmp_path: Path, launcher: str) -> None:
    config = make_config(tmp_path / "made")
    emulated(config)
    with pytest.raises(UserError, match=r"an emulated VM config: .* would run this guest unprotected"):
        EXPORTS[launcher](config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("char", ["\0", "\n", "\x7f", "\x85", "\ud800", "\ufffe", "\uffff"])
def test_characters_that_a_document_cannot_hold_are_refused(char: str) -> None:
    check_text("XML", ["a", "é€😀 <&>'\""])  # control
    with pytest.raises(UserError, match=f"found the character {ord(char):#x}"):
        check_text("XML", ["a", f"a{char}b"])
