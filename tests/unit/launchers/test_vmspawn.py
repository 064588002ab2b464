# SPDX-License-Identifier: Apache-2.0
"""Fields of a VM config that systemd-vmspawn would launch differently: each is named, and no other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.launchers.vmspawn import export_vmspawn, refused_fields
from sevsnp.vm_config.config import Disk, VmConfig
from tests.support.evidence import write_file
from tests.support.exports import guest_of, make_config, sign

ALWAYS = "launch.vcpu_model"


def least(place: Path, **changes: Any) -> VmConfig:
    """A VM config that differs from what vmspawn launches in nothing but the CPU model."""
    place.mkdir(exist_ok=True)
    (place / "root").write_bytes(b"x")
    values = {
        "host_data": bytes(32),
        "cmdline": write_file(place / "words", b"console=hvc0 root=/dev/vda"),
        "disks": (Disk("root", place / "root", 1, write_file(place / "root", b"x").sha256),),
    }
    return make_config(place, **{**values, **changes})


def test_the_cpu_model_is_always_named(tmp_path: Path) -> None:
    assert refused_fields(guest_of(least(tmp_path))).keys() == {ALWAYS}


CHANGES: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "policy": ("launch.guest_policy", lambda _: {"guest_policy": 0x20000}),
    "host data": ("launch.host_data", lambda _: {"host_data": b"\1" * 32}),
    "cmdline": ("files.cmdline", lambda place: {"cmdline": write_file(place / "other", b"aroot=x")}),
    "disk": (
        "disk[0].role",
        lambda place: {"disks": (Disk("root", place / "disk,1", 1, write_file(place / "disk,1", b"x").sha256),)},
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_each_other_field(tmp_path: Path, case: str) -> None:
    field, changes = CHANGES[case]
    assert refused_fields(guest_of(least(tmp_path, **changes(tmp_path)))).keys() == {ALWAYS, field}


def test_an_id_block(tmp_path: Path) -> None:
    config, _ = sign(least(tmp_path))
    assert refused_fields(guest_of(config)).keys() == {ALWAYS, "files.id_block, files.id_auth"}


def test_all_fields_are_named_at_once(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(UserError) as refused:
        export_vmspawn(vm_config=config.source, asked={}, name="", memory=1 << 30)
    said = str(refused.value)
    assert f"{config.source}: systemd-vmspawn would launch another guest" in said
    for field in (ALWAYS, "launch.host_data", "files.cmdline", "disk[0].role", "disk[1].role"):
        assert f"\n  {field}: " in said
    assert "launch.guest_policy" not in said and "id_block" not in said
