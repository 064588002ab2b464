# SPDX-License-Identifier: Apache-2.0
"""The command line of a confidential guest in QEMU's own parser: what it accepts, refuses, and leaves to us.

No guest starts: this machine's KVM has no SEV-SNP, or QEMU's own emulation cannot have it. QEMU says so only after it
has taken every option before.
"""

import base64
import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sevsnp.e2e.guest import free_port
from sevsnp.errors import UserError
from sevsnp.measurement.id_block import make_identity
from sevsnp.qemu.process import common_arguments, emulated_arguments
from sevsnp.qemu.snp_options import check_snp, snp_command
from tests.conftest import Built
from tests.unit.measurement.test_id_block import BLOCK, ID_KEY, SIGNED
from tests.unit.qemu.test_snp_options import launch_in, options_in, with_files

TAKEN = "KVM required"


@pytest.fixture
def qemu(built: Built) -> Path:
    return built.qemu


def ends_with(qemu: Path, arguments: list[str]) -> str:
    """The last line of a QEMU that ends by itself, with an error."""
    done = subprocess.run([qemu, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1, done
    return done.stderr.decode().splitlines()[-1]


def without_kvm(arguments: list[str]) -> list[str]:
    """With QEMU's own emulation its last word is the same on every machine, with or without /dev/kvm."""
    return ["tcg" if word == "kvm" else word for word in arguments]


GOOD: dict[str, dict[str, Any]] = {
    "one vCPU": {},
    "several vCPUs": {"vcpus": 8},
    "another model": {"vcpu_model": "EPYC-Genoa-v2"},
    "no SMT, and the ABI's version": {"guest_policy": 0x20137},
    "every bit of the policy that is known": {"guest_policy": 0x3FFFFFF},
    "host data": {"host_data": bytes(range(224, 256))},
}


@pytest.mark.parametrize("case", GOOD)
def test_good_options(qemu: Path, tmp_path: Path, case: str) -> None:
    launch = launch_in(tmp_path, **GOOD[case])
    arguments = snp_command(launch, options_in(tmp_path), tmp_path / "qmp", 51, 1)
    assert ends_with(qemu, without_kvm(arguments)).endswith(TAKEN)


def test_good_options_with_kvm(qemu: Path, tmp_path: Path) -> None:
    """Unchanged, they fail at the SEV-SNP support that this machine lacks; the guest's files are never read."""
    arguments = snp_command(launch_in(tmp_path), options_in(tmp_path), tmp_path / "qmp", 51, 1)
    said = ends_with(qemu, arguments)
    assert "vm-type SEV-SNP not supported by KVM" in said or "failed to initialize kvm" in said, said


@pytest.mark.parametrize("author", [True, False], ids=["author", "no author"])
def test_a_good_id_block(qemu: Path, tmp_path: Path, author: bool) -> None:
    identity = SIGNED if author else make_identity(BLOCK, ID_KEY, None)
    launch = with_files(launch_in(tmp_path), identity, tmp_path)
    arguments = snp_command(launch, options_in(tmp_path), tmp_path / "qmp", 51, 1)
    assert any(",id-auth=" in word for word in arguments)
    assert ends_with(qemu, without_kvm(arguments)).endswith(TAKEN)


def other(arguments: list[str], old: str, new: str) -> list[str]:
    """The arguments with a property of sev-snp-guest replaced, or added if ``old`` is empty."""
    (found,) = (word for word in arguments if word.startswith("sev-snp-guest,"))
    parts = [new if old and part.startswith(f"{old}=") else part for part in found.split(",")]
    parts += [] if old else [new]
    changed = ",".join(parts)
    assert changed != found
    return [changed if word == found else word for word in arguments]


# A property, what stands there instead, and QEMU's own words for it.
REFUSED = {
    "a property that it does not know": ("", "no-such=1", "Invalid parameter 'no-such'"),
    "no number": ("policy", "policy=much", "Parameter 'policy' expects a uint64 value"),
    "host data that are no base64": ("host-data", "host-data=!", "Base64 data"),
    "short host data": ("host-data", "host-data=AAAA", "parameter length of 3 not equal to 32"),
    "a short ID block": ("", "id-block=AAAA", "parameter length of 3 not equal to 96"),
    "no switch": ("kernel-hashes", "kernel-hashes=perhaps", "Parameter 'kernel-hashes' expects 'on' or 'off'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_bad_option_gives_its_own_error(qemu: Path, tmp_path: Path, case: str) -> None:
    old, new, words = REFUSED[case]
    good = without_kvm(snp_command(launch_in(tmp_path), options_in(tmp_path), tmp_path / "qmp", 51, 1))
    assert ends_with(qemu, good).endswith(TAKEN)  # control
    assert words in ends_with(qemu, other(good, old, new))


# What QEMU takes, and we do not: the property, and the launch that would have it.
OURS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no policy": ("policy", "policy=0x0", {"guest_policy": 0}),
    "without the bit that must be one": ("policy", "policy=0x10000", {"guest_policy": 0x10000}),
    "a reserved bit": ("policy", "policy=0x40030000", {"guest_policy": 0x40030000}),
}


@pytest.mark.parametrize("case", OURS)
def test_options_that_qemu_accepts_and_we_refuse(qemu: Path, tmp_path: Path, case: str) -> None:
    old, new, changes = OURS[case]
    good = without_kvm(snp_command(launch_in(tmp_path), options_in(tmp_path), tmp_path / "qmp", 51, 1))
    assert ends_with(qemu, other(good, old, new)).endswith(TAKEN)
    with pytest.raises(UserError, match="guest_policy"):
        check_snp(launch_in(tmp_path, **changes))


def test_an_id_block_that_qemu_accepts_and_we_refuse(qemu: Path, tmp_path: Path) -> None:
    launch = with_files(launch_in(tmp_path), SIGNED, tmp_path)
    assert launch.id_block and launch.id_auth
    plain = dataclasses.replace(launch, id_block=None, id_auth=None)
    good = without_kvm(snp_command(plain, options_in(tmp_path), tmp_path / "qmp", 51, 1))
    block = launch.id_block.path.read_text().strip()
    assert ends_with(qemu, other(good, "", f"id-block={block}")).endswith(TAKEN)
    with pytest.raises(UserError, match="id_block"):
        check_snp(dataclasses.replace(launch, id_auth=None))
    short = base64.b64encode(SIGNED.auth.encode()[:-1]).decode()
    assert ends_with(qemu, other(good, "", f"id-block={block},id-auth={short}")).endswith(TAKEN)
    launch.id_auth.path.write_text(short)
    with pytest.raises(UserError, match="other than 4096 bytes"):
        check_snp(launch)


@pytest.mark.parametrize(
    ("missing", "said"), [("firmware", "could not load PC BIOS"), ("kernel", "could not open kernel")]
)
def test_a_path_with_commas_is_one_path(qemu: Path, tmp_path: Path, missing: str, said: str) -> None:
    """QEMU itself names the file that it cannot open; the paths before it, of console and disk, are right then."""
    place = tmp_path / "a,b='c' \"d\""
    place.mkdir()
    launch = launch_in(place)
    launch.firmware.path.write_bytes(bytes(1 << 16))
    getattr(launch, missing).path.unlink()
    options = options_in(place, ssh_port=free_port(), attest_port=free_port())
    arguments = [*emulated_arguments("qemu64", 256 << 20, "tcg"), *common_arguments(launch, options, place / "qmp")]
    found = ends_with(qemu, arguments)
    assert said in found and str(getattr(launch, missing).path) in found
    assert (place / "serial.log").exists()
