# SPDX-License-Identifier: Apache-2.0
"""Mutated headers without a check of their digest, and what the guest's own cryptsetup and kernel do with them.

The control arm of tests/unit/images/test_luks_headers.py: there the guest refuses every one of them; here, in the
appliance (the same packages, the same kernel), no digest stands in the way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import text_entry
from sevsnp.images.initramfs import join_layers
from sevsnp.images.kernel_modules import ModuleTree
from sevsnp.images.luks import format_options
from sevsnp.qemu.appliance import Appliance, ApplianceDisk, run_job
from tests.conftest import PROJECT, Built
from tests.support.luks_mutations import KEYS, MUTATIONS, OBEYED, SUPERBLOCKS
from tests.support.luks_volume import SIZE, synthetic
from tests.support.newc import read_joined

JOB = PROJECT / "tests" / "support" / "luks_headers_job.py"
MIB = 1 << 20
# A header whose cost is paid takes longer than any other, however slow the emulated machine is.
SECONDS = 60
UUID = "00000000-0000-4000-8000-000000000001"
TELLING = (
    "null data cipher, no integrity",
    "segment not encrypted",
    "sector size 512",
    "flag: no journal",
    "null keyslot cipher, any key opens",
    "second keyslot, the host's",
    "second copy newer",
    "older, before the key was changed",
    "another volume's",
)
Made = dict[str, dict[str, Any]]


def appliance_with_job(built: Built, directory: Path) -> Appliance:
    """The appliance with our job, and with the null cipher, which the guest's initramfs does not have."""
    version = (built.build / "kernel" / "version").read_text().strip()
    modules = ModuleTree(built.build / "kernel" / "lib" / "modules" / version).closure(["crypto_null"], "this test")
    entries = [
        text_entry(f"usr/lib/sevsnp/appliance/{JOB.name}", JOB.read_bytes()),
        *(text_entry(f"usr/lib/sevsnp/more-modules/{name}.ko", image) for name, image in modules.items()),
    ]
    layer, initrd = directory / "job.cpio", directory / "initramfs"
    with layer.open("wb") as stream:
        write_cpio(with_parents(entries), stream)
    join_layers(layers=[built.build / "initramfs.appliance.cpio.zst", layer], output=initrd)
    return Appliance(built.qemu, built.build / "kernel" / "vmlinuz", initrd, built.build / "run" / "platform.json")


def obey(built: Built, directory: Path, names: Sequence[str]) -> Made:
    """What becomes of the volume's own header, under "", and of the mutations ``names``, in one boot."""
    volume = synthetic()
    headers = [volume.header, *(MUTATIONS[name](volume) for name in names)]
    keys = [volume.key, *(KEYS.get(name, volume.key) for name in names)]
    (directory / "headers").write_bytes(b"".join(headers))
    with (directory / "data").open("wb") as stream:
        stream.truncate(96 * MIB)
    found = run_job(
        appliance_with_job(built, directory),
        JOB.stem,
        {
            "format": format_options(UUID, "made"),
            "size": SIZE,
            "keys": [key.hex() for key in keys],
            "superblocks": [SUPERBLOCKS.get(name, {}) for name in ("", *names)],
            "seconds": SECONDS,
        },
        disks=[
            ApplianceDisk("headers", directory / "headers", read_only=True),
            ApplianceDisk("data", directory / "data"),
        ],
        seconds=1800,
    )
    return dict(zip(("", *names), found["results"], strict=True))


def outcome(made: Made, name: str) -> str:
    """As :data:`OBEYED` has it; what cryptsetup said where it opened nothing."""
    if "said" in made[name]:
        return str(made[name]["said"])
    return "same" if made[name]["digest"] == made[""]["digest"] else "other"


@pytest.mark.full
@pytest.mark.parametrize("names", [pytest.param(TELLING, id="telling"), pytest.param(tuple(MUTATIONS), id="all")])
def test_control_headers_without_a_check_of_their_digest_are_obeyed(
    built: Built, tmp_path: Path, names: tuple[str, ...]
) -> None:
    made = obey(built, tmp_path, names)
    crypt, integrity = made[""]["tables"]
    assert " crypt capi:authenc(hmac(sha256),xts(aes))-random " in crypt and " J " in integrity
    assert {name: outcome(made, name) for name in names if name in OBEYED} == {
        name: OBEYED[name] for name in names if name in OBEYED
    }
    # What it would have meant: plain text on the host's disk, writes that no journal protects.
    (null,) = made["null data cipher, no integrity"]["tables"]
    assert " crypt cipher_null-ecb " in null
    (linear,) = made["segment not encrypted"]["tables"]
    assert linear.split()[2] == "linear"
    assert " D " in made["flag: no journal"]["tables"][1]
    for name in names:
        if name in ("derivation without end", "derivation of two thousand million rounds", "digest of many rounds"):
            assert "no end" in outcome(made, name), name


def test_the_guest_has_no_null_cipher_to_load(built: Built) -> None:
    """A second line of defence, and no more than that: the test above must load the module for this reason."""
    archives = read_joined((built.build / "initramfs.cpio.zst").read_bytes())
    names = [member.name for archive in archives for member in archive]
    assert any(name.endswith("/dm_crypt.ko") for name in names)
    assert not [name for name in names if "crypto_null" in name]
