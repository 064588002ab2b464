# SPDX-License-Identifier: Apache-2.0
"""Settings that a VM config has fixed: repeating them is fine, changing them is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.vm_config.config import Disk, File, Launch, Reference, Stage, Tcb, VmConfig
from sevsnp.vm_config.fixed import check_fixed

LINE = "console=ttyS0 acpi=off sevsnp.rootfs=ext4 sevsnp.writable=overlay sevsnp.tmpfs=etc:1,home:2,var:3,tmp:4"
LINE += " sevsnp.dns=192.0.2.1,2001:db8::1"


@pytest.fixture
def config(tmp_path: Path) -> VmConfig:
    cmdline = tmp_path / "cmdline"
    cmdline.write_text(LINE)
    file = File(cmdline, "0" * 64)
    disks = (Disk("verity-data", cmdline, 1, "0" * 64),)
    launch = Launch(
        "verity", "snp", "Genoa", 1, "EPYC-v4", 0x30000, 1, bytes(32), file, file, file, file, disks
    )  # fmt: skip
    reference = Reference(bytes(48), Tcb(3, 0, 8, 115), 0, 0, bytes(16), bytes(16), 0x20, 0)
    return VmConfig(tmp_path / "vm-config.toml", launch, reference)


SAME: dict[str, int | str] = {
    "CPUS": 1,
    "CPU_MODEL": "EPYC-v4",
    "POLICY": 0x30000,
    "GUEST_FEATURES": 1,
    "PRODUCT": "Genoa",
    "ACPI": "off",
    "WRITABLE": "overlay",
    "VERITY_FILESYSTEM": "ext4",
    "GUEST_DNS": "192.0.2.1,2001:db8::1",
    "TMPFS_ETC": 1,
    "TMPFS_HOME": 2,
    "TMPFS_VAR": 3,
    "TMPFS_TMP": 4,
    "MIN_TCB": "microcode:115,snp:8,bootloader:3,tee:0",
    "FAMILY_ID": "0" * 32,
    "IMAGE_ID": "0" * 32,
    "PLATFORM_INFO_REQUIRED": 0x20,
    "PLATFORM_INFO_FORBIDDEN": 0,
}
OTHER: dict[str, int | str] = {
    "CPUS": 2,
    "CPU_MODEL": "EPYC-Genoa",
    "POLICY": 0x20000,
    "GUEST_FEATURES": 0x21,
    "PRODUCT": "Milan",
    "ACPI": "on",
    "WRITABLE": "copy",
    "VERITY_FILESYSTEM": "erofs",
    "GUEST_DNS": "192.0.2.2",
    "TMPFS_ETC": 9,
    "TMPFS_HOME": 9,
    "TMPFS_VAR": 9,
    "TMPFS_TMP": 9,
    "MIN_TCB": "snp:9",
    "FAMILY_ID": "1" * 32,
    "IMAGE_ID": "1" * 32,
    "PLATFORM_INFO_REQUIRED": 0,
    "PLATFORM_INFO_FORBIDDEN": 1,
}


def test_repeating_is_fine(config: VmConfig) -> None:
    check_fixed(config, SAME)
    check_fixed(config, {"MEMORY": 1 << 30, "SSH_PORT": 1, "ACPI": "off"})


def test_only_settings_on_the_command_line_need_its_file(config: VmConfig) -> None:
    config.launch.cmdline.path.unlink()
    check_fixed(config, {"CPUS": config.launch.vcpus})  # a verifier may have the VM config alone
    with pytest.raises(UserError, match="cannot read the cmdline: No such file"):
        check_fixed(config, {"ACPI": "off"})


def test_acpi_own_is_fixed_for_a_guest_with_a_stage(config: VmConfig) -> None:
    config.launch.cmdline.path.write_text(LINE.replace("acpi=off ", ""))
    staged = replace(config, reference=replace(config.require_reference(), stage=Stage(*["0" * 64] * 3)))
    for given, other in ((staged, config), (config, staged)):
        said = "own" if given is staged else "on"
        check_fixed(given, {"ACPI": said})
        with pytest.raises(UserError, match=f"ACPI={said}: .* was made for ACPI="):
            check_fixed(other, {"ACPI": said})


@pytest.mark.parametrize("name", SAME)
def test_changing_is_refused_by_name(config: VmConfig, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}=.*was made for {name}=") as refused:
        check_fixed(config, {**SAME, name: OTHER[name]})
    assert f"./doitw setup_verity {name}=" in refused.value.hint


def test_the_data_disk(config: VmConfig) -> None:
    check_fixed(config, {"DATA_SIZE": 0, "DATA_PATH": "/opt"})  # without such a disk its path does not matter
    with pytest.raises(UserError, match=r"DATA_SIZE=9: .* was made for DATA_SIZE=0"):
        check_fixed(config, {"DATA_SIZE": 9})
    words = f" sevsnp.data=1:1048576:{'1' * 64}:{'2' * 64}:/srv sevsnp.owner=x"
    config.launch.cmdline.path.write_text(LINE + words)
    check_fixed(config, {"DATA_SIZE": 9, "DATA_PATH": "/srv"})
    for asked in ({"DATA_SIZE": 0}, {"DATA_PATH": "/opt"}):
        with pytest.raises(UserError, match=f"{next(iter(asked))}="):
            check_fixed(config, asked)


def test_the_launch_file_of_a_host_fixes_the_values_that_it_contains(config: VmConfig) -> None:
    check_fixed(replace(config, reference=None), {"MIN_TCB": "snp:9"})
    with pytest.raises(UserError, match="CPUS=2"):
        check_fixed(replace(config, reference=None), {"CPUS": 2})


def test_any_tcb_version_and_no_tcb_version_are_different_values(config: VmConfig) -> None:
    cases: tuple[tuple[Any, str, tuple[str, str]], ...] = (("any", "any", ("", "snp:9")), (None, "", ("any", "snp:9")))
    for made, same, others in cases:
        reference = replace(config.require_reference(), minimum_tcb=made)
        other = replace(config, reference=reference)
        check_fixed(other, {"MIN_TCB": same})
        for asked in others:
            with pytest.raises(UserError, match=r"MIN_TCB=.*was made for MIN_TCB="):
                check_fixed(other, {"MIN_TCB": asked})


def test_an_encrypted_root_fixes_no_setting_of_the_verified_one(config: VmConfig) -> None:
    config.launch.cmdline.path.write_text("console=ttyS0 acpi=off sevsnp.mode=luks")
    encrypted = replace(config, launch=replace(config.launch, workflow="luks"))
    check_fixed(encrypted, {"WRITABLE": "copy", "VERITY_FILESYSTEM": "erofs", "TMPFS_VAR": 9, "ACPI": "off", "CPUS": 1})
    for name in ("ACPI", "CPUS"):
        with pytest.raises(UserError, match=f"{name}=") as refused:
            check_fixed(encrypted, {name: OTHER[name]})
        assert f"./doitw setup_luks {name}=" in refused.value.hint
    for words, is_set, other in (("", "closed", "open"), (" sevsnp.reports=open", "open", "closed")):
        config.launch.cmdline.path.write_text(f"console=ttyS0 acpi=off sevsnp.mode=luks{words}")
        check_fixed(encrypted, {"LUKS_REPORTS": is_set})
        with pytest.raises(UserError, match=f"LUKS_REPORTS={other}: .* was made for LUKS_REPORTS={is_set}"):
            check_fixed(encrypted, {"LUKS_REPORTS": other})
