# SPDX-License-Identifier: Apache-2.0
"""The command line of a confidential guest has every value of the launch; values unchecked by QEMU are refused."""

import base64
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.measurement.id_block import IdBlock, Identity, make_identity, write_identity
from sevsnp.qemu.process import escaped
from sevsnp.qemu.run_options import RunOptions
from sevsnp.qemu.snp_options import check_snp, snp_arguments, snp_command
from sevsnp.vm_config.config import File, Launch
from tests.support.configs import file
from tests.support.evidence import make_launch, write_file
from tests.unit.measurement.test_id_block import AUTHOR_KEY, BLOCK, ID_KEY, SIGNED


def launch_in(directory: Path, **changes: Any) -> Launch:
    (directory / "root.img").write_bytes(bytes(4096))
    return make_launch(directory, platform="snp", **changes)


def with_files(launch: Launch, identity: Identity, directory: Path) -> Launch:
    block, auth = directory / "id-block.base64", directory / "auth-block.base64"
    write_identity(identity, block, auth)
    return dataclasses.replace(launch, id_block=file(block), id_auth=file(auth))


def options_in(directory: Path, **changes: Any) -> RunOptions:
    made = RunOptions(qemu=Path("qemu"), memory=512 << 20, ssh_port=2222, attest_port=8088, state=directory)
    return dataclasses.replace(made, **changes)


def value_of(arguments: list[str], option: str) -> str:
    """The value of an option that is there once."""
    assert arguments.count(option) == 1, option
    return arguments[arguments.index(option) + 1]


def properties(arguments: list[str]) -> dict[str, str]:
    (found,) = (word for word in arguments if word.startswith("sev-snp-guest,"))
    return dict(part.split("=", 1) for part in found.split(",")[1:])


def test_the_whole_command_line(tmp_path: Path) -> None:
    launch = with_files(launch_in(tmp_path, host_data=b"h" * 32), SIGNED, tmp_path)
    arguments = snp_command(launch, options_in(tmp_path), tmp_path / "qmp", 51, 1)
    assert properties(arguments) == {
        "id": "snp",
        "policy": "0x30000",
        "cbitpos": "51",
        "reduced-phys-bits": "1",
        "kernel-hashes": "on",
        "host-data": base64.b64encode(b"h" * 32).decode(),
        "id-block": base64.b64encode(SIGNED.block.encode()).decode(),
        "id-auth": base64.b64encode(SIGNED.auth.encode()).decode(),
        "author-key-enabled": "on",
    }
    assert value_of(arguments, "-accel") == "kvm"
    assert {"confidential-guest-support=snp", "memory-backend=ram"} <= set(value_of(arguments, "-machine").split(","))
    for option, named in (("-bios", launch.firmware), ("-kernel", launch.kernel), ("-initrd", launch.initrd)):
        assert value_of(arguments, option) == str(named.path)
    assert value_of(arguments, "-append") == launch.cmdline.path.read_text()
    assert (value_of(arguments, "-smp"), value_of(arguments, "-cpu")) == ("1", "EPYC-v4")


def another_cmdline(directory: Path) -> File:
    return write_file(directory / "other-cmdline", b"another")


# Each measured or checked value of a launch: another value of it, and the part of the command line that follows.
CHANGES: dict[str, tuple[Callable[[Path], Any], Callable[[list[str]], Any], Any]] = {
    "vcpus": (lambda _: 4, lambda words: value_of(words, "-smp"), "4"),
    "vcpu_model": (lambda _: "EPYC-Genoa", lambda words: value_of(words, "-cpu"), "EPYC-Genoa"),
    "guest_policy": (lambda _: 0x20000, lambda words: properties(words)["policy"], "0x20000"),
    "host_data": (lambda _: b"\1" * 32, lambda words: base64.b64decode(properties(words)["host-data"]), b"\1" * 32),
    "firmware": (lambda place: File(place / "fw", "0" * 64), lambda words: value_of(words, "-bios")[-3:], "/fw"),
    "kernel": (lambda place: File(place / "kn", "0" * 64), lambda words: value_of(words, "-kernel")[-3:], "/kn"),
    "initrd": (lambda place: File(place / "rd", "0" * 64), lambda words: value_of(words, "-initrd")[-3:], "/rd"),
    "cmdline": (another_cmdline, lambda words: value_of(words, "-append"), "another"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_value_of_the_launch_is_in_it(tmp_path: Path, field: str) -> None:
    other, found, expected = CHANGES[field]
    launch, options = launch_in(tmp_path), options_in(tmp_path)
    assert found(snp_command(launch, options, tmp_path / "qmp", 51, 1)) != expected  # control
    launch = dataclasses.replace(launch, **{field: other(tmp_path)})
    assert found(snp_command(launch, options, tmp_path / "qmp", 51, 1)) == expected


@pytest.mark.parametrize("memory", [512 << 20, (300 << 20) + 1, (300 << 20) + 4096])
def test_the_memory_of_guest_and_backend_is_equal(tmp_path: Path, memory: int) -> None:
    arguments = snp_arguments(launch_in(tmp_path), memory, 51, 1)
    (backend,) = (word for word in arguments if word.startswith("memory-backend-memfd,"))
    assert f"size={int(value_of(arguments, '-m').removesuffix('M')) << 20}," in backend


def test_commas_in_paths_are_escaped(tmp_path: Path) -> None:
    place = tmp_path / "a,b='c' \"d\"&<>"
    place.mkdir()
    launch, options = launch_in(place), options_in(place)
    arguments = snp_command(launch, options, place / "qmp", 51, 1)
    assert value_of(arguments, "-kernel") == str(place / "kernel")  # these options take the whole word
    assert f"logfile={escaped(place / 'serial.log')}," in value_of(arguments, "-chardev")
    assert value_of(arguments, "-qmp") == f"unix:{escaped(place / 'qmp')},server=on,wait=off"
    assert ",," in escaped(place)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no policy": ({"guest_policy": 0}, r"guest_policy: found 0x0, expected bit 17"),
    "without the bit that must be one": ({"guest_policy": 0x10000}, r"guest_policy: found 0x10000"),
    "a reserved bit": ({"guest_policy": 0x30000 | 1 << 30}, r"guest_policy: found 0x40030000"),
    "the highest bit": ({"guest_policy": 0x30000 | 1 << 63}, r"guest_policy: found 0x8000000000030000"),
    "short host data": ({"host_data": b"\0" * 31}, r"host_data: found 31 bytes, expected 32"),
    "long host data": ({"host_data": b"\0" * 33}, r"host_data: found 33 bytes, expected 32"),
    "a CPU with properties": ({"vcpu_model": "EPYC-v4,+avx"}, r"vcpu_model: found 'EPYC-v4,\+avx'"),
    "no CPU": ({"vcpu_model": ""}, r"vcpu_model: found ''"),
    "no vCPU": ({"vcpus": 0}, r"vcpus: found 0, expected 1 to 255"),
    "too many vCPUs": ({"vcpus": 256}, r"vcpus: found 256"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_qemu_does_not_check_are_refused(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    check_snp(launch_in(tmp_path))  # control
    with pytest.raises(UserError, match=message):
        snp_command(launch_in(tmp_path, **changes), options_in(tmp_path), tmp_path / "qmp", 51, 1)


@pytest.mark.parametrize("alone", ["id_block", "id_auth"])
def test_an_id_block_alone(tmp_path: Path, alone: str) -> None:
    launch = with_files(launch_in(tmp_path), SIGNED, tmp_path)
    check_snp(launch)  # control
    other: dict[str, Any] = {"id_auth" if alone == "id_block" else "id_block": None}
    with pytest.raises(UserError, match=rf"files\.{alone}: found it alone"):
        check_snp(dataclasses.replace(launch, **other))


@pytest.mark.parametrize("name", ["id-block.base64", "auth-block.base64"])
@pytest.mark.parametrize("change", [-1, 1])
def test_the_length_of_an_id_block(tmp_path: Path, name: str, change: int) -> None:
    launch = with_files(launch_in(tmp_path), SIGNED, tmp_path)
    data = base64.b64decode((tmp_path / name).read_text())
    data = data[:change] if change < 0 else data + b"\0"
    (tmp_path / name).write_text(base64.b64encode(data).decode())
    with pytest.raises(UserError, match=rf"{name}: found other than (96|4096) bytes in base64"):
        check_snp(launch)


def test_an_id_block_for_another_policy(tmp_path: Path) -> None:
    other = IdBlock(BLOCK.launch_digest, BLOCK.family_id, BLOCK.image_id, BLOCK.guest_svn, 0x20000)
    launch = with_files(launch_in(tmp_path), make_identity(other, ID_KEY, AUTHOR_KEY), tmp_path)
    with pytest.raises(UserError, match=r"POLICY_FAILURE .*policy is 0x30000, its ID block is for 0x20000"):
        check_snp(launch)
    check_snp(dataclasses.replace(launch, guest_policy=0x20000))  # control
