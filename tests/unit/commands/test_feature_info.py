# SPDX-License-Identifier: Apache-2.0
"""sev-feature-info: the bytes of the platform status, the policy for them, and machines without the device."""

import ctypes
import dataclasses
import errno
import fcntl
import json
import struct
import tomllib
from pathlib import Path

import pytest

from sevsnp.commands.feature_info import main, policy_section, settings_lines, warnings
from sevsnp.errors import UserError
from sevsnp.host_setup.platform_status import host_product, parse_status, read_status
from sevsnp.settings.values import parse_tcb
from sevsnp.vm_config.config import Product, Tcb


def answer(
    state: int = 1, rmp: int = 1, flags: int = 0, current: bytes = b"\3\0\0\0\0\0\x08\x73", reported: bytes = b""
) -> bytes:
    return struct.pack("<BBBBIII", 1, 55, state, rmp, 40, flags, 7) + current + (reported or current)


def test_an_answer() -> None:
    status = parse_status(answer(flags=0b1010000, reported=b"\2\0\0\0\0\0\x07\x72"), "Genoa")
    assert (status.api, status.build, status.state, status.rmp_initialized, status.guests) == (
        "1.55", 40, "initialized", True, 7,
    )  # fmt: skip
    assert status.current_tcb == Tcb(bootloader=3, tee=0, snp=8, microcode=0x73)
    assert status.reported_tcb == Tcb(bootloader=2, tee=0, snp=7, microcode=0x72)
    assert [name for name, value in status.flags.items() if value] == ["rapl_dis", "ciphertext_hiding_en"]


@pytest.mark.parametrize(
    ("bit", "name"),
    list(enumerate(
        ("mask_chip_id", "mask_chip_key", "vlek_en", "feature_info", "rapl_dis", "ciphertext_hiding_cap",
         "ciphertext_hiding_en", "bit_7")
    )),
)  # fmt: skip
def test_every_flag_is_parsed_by_its_bit(bit: int, name: str) -> None:
    flags = parse_status(answer(flags=1 << bit), "Genoa").flags
    assert [known for known, value in flags.items() if value] == [name]
    assert not any(parse_status(answer(), "Genoa").flags.values())


def test_a_turin_tcb_version_has_the_additional_part_fmc() -> None:
    tcb = b"\1\2\3\4\0\0\0\5"
    status = parse_status(answer(current=tcb), "Turin")
    assert status.current_tcb == Tcb(bootloader=2, tee=3, snp=4, microcode=5, fmc=1)
    with pytest.raises(UserError, match="reserved bytes are not zero in Genoa's layout"):
        parse_status(answer(current=tcb), "Genoa")


@pytest.mark.parametrize("data", [b"", answer()[:-1], answer() + b"\0"])
def test_a_malformed_platform_status_is_refused(data: bytes) -> None:
    parse_status(answer(), "Genoa")  # control
    with pytest.raises(UserError, match="platform status: "):
        parse_status(data, "Genoa")


@pytest.mark.parametrize(
    ("byte", "rmp", "alias"), [(0, False, False), (1, True, False), (2, False, True), (3, True, True)]
)
def test_bit_0_alone_says_whether_the_rmp_is_initialized(byte: int, rmp: bool, alias: bool) -> None:
    for later in (0, 4, 8):
        status = parse_status(answer(rmp=byte | later), "Milan")
        assert (status.rmp_initialized, status.alias_check_complete) == (rmp, alias)


PRODUCTS: list[tuple[Product, bytes]] = [
    ("Milan", b"\3\0\0\0\0\0\x08\x73"), ("Genoa", b"\3\0\0\0\0\0\x08\x73"), ("Turin", b"\1\2\3\4\0\0\0\5"),
]  # fmt: skip


@pytest.mark.parametrize(("product", "tcb"), PRODUCTS)
def test_the_policy_has_the_reported_tcb(product: Product, tcb: bytes) -> None:
    lower = tcb[:-1] + bytes((tcb[-1] - 1,))
    status = parse_status(answer(current=tcb, reported=lower, flags=0b10000), product)
    policy = tomllib.loads(policy_section(status))["policy"]
    wanted = {name: value for name, value in dataclasses.asdict(status.reported_tcb).items() if value is not None}
    assert policy["reported_tcb"] == policy["committed_tcb"] == policy["launch_tcb"] == wanted
    assert (policy["product"], policy["firmware"]) == ([product], {"at_least": "1.55.40"})
    assert policy["profile"] == ("legacy-milan" if product == "Milan" else "default")
    assert policy["platform_info"] == {"rapl_dis": True}
    assert "platform_info" not in tomllib.loads(policy_section(parse_status(answer(current=tcb), product)))["policy"]
    line = next(line for line in settings_lines(status).splitlines() if line.startswith("min_tcb"))
    parts = parse_tcb(line.split('"')[1])
    assert {name: parts[name] for name in wanted} == wanted


def test_warnings_name_unsafe_states() -> None:
    assert warnings(parse_status(answer(), "Genoa")) == []
    for data, words in (
        (answer(state=0), "uninitialized"),
        (answer(state=9), "unknown (9)"),
        (answer(reported=b"\2\0\0\0\0\0\x08\x73"), "current TCB differs from the reported one"),
        (answer(flags=1), "chip id is masked"),
        (answer(flags=2), "chip key is masked"),
        (answer(flags=4), "VLEK"),
    ):
        (found,) = warnings(parse_status(data, "Genoa"))
        assert words in found


# The machine. What a driver would do is done by a function in place of the ioctl: no such machine is at hand.


def test_the_driver_gets_the_request_it_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "sev"
    device.touch()
    seen: list[tuple[int, int]] = []

    def ioctl(descriptor: object, request: int, command: bytearray, mutate: bool) -> int:
        number, address, _ = struct.unpack("<IQI", command)
        seen.append((request, number))
        ctypes.memmove(address, answer(), 32)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert read_status(device) == answer()
    assert seen == [(0xC0105300, 9)]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOTTY, "SEV-SNP is off, or the kernel too old"),
        (errno.EINVAL, "SEV-SNP is off, or the kernel too old"),
        (errno.EIO, "firmware status 0x16"),
    ],
)
def test_the_driver_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    device = tmp_path / "sev"
    device.touch()

    def ioctl(descriptor: object, request: int, command: bytearray, mutate: bool) -> int:
        struct.pack_into("<I", command, 12, 0x16)
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with pytest.raises(UserError, match="no") as caught:
        read_status(device)
    assert words in str(caught.value)


def test_a_missing_device_gives_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for device, words in ((tmp_path / "sev", "no such device"), (Path("/dev/null"), "SEV-SNP is off")):
        assert main(["--device", str(device), "--product", "Genoa"]) == 3
        shown = capsys.readouterr()
        assert shown.out == "" and words in shown.err and str(device) in shown.err


def test_a_user_without_access_to_the_device_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "sev"
    device.touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no", str(device))

    monkeypatch.setattr(Path, "open", refuse)  # root, who runs tests in a container, may always
    with pytest.raises(UserError, match="may not open it") as caught:
        read_status(device)
    assert caught.value.hint == "run it as root, or as a user who may open it"


def test_the_product_of_a_host(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for family, model, product in ((25, 1, "Milan"), (25, 17, "Genoa"), (25, 160, "Genoa"), (26, 2, "Turin")):
        numbers = f"cpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: AMD\nstepping\t: 1\n"
        cpuinfo.write_text(f"processor\t: 0\n{numbers}")
        assert host_product(cpuinfo) == product
    for text in ("", "cpu family\t: 6\nmodel\t\t: 85\nstepping\t: 7\n"):
        cpuinfo.write_text(text)
        with pytest.raises(UserError, match="no known product"):
            host_product(cpuinfo)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--status", answer(flags=1).hex(), "--product", "Genoa"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "1.55 build 40" in shown and "warning: the chip id" in shown
    assert tomllib.loads(shown[shown.index("[policy]") :])["policy"]["product"] == ["Genoa"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["reported_tcb"]["microcode"] == 0x73 and document["flags"]["mask_chip_id"] is True
    assert main(["--status", "00", "--product", "Genoa"]) == 3
    for wrong in (["--status", "zz"], ["--product", "Rome"], ["--status", answer().hex()]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 64


@pytest.mark.parametrize("own", ["Genoa", "Turin"])
def test_a_given_status_is_not_read_with_the_product_of_this_machine(
    own: Product, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bytes are another TCB version on a Turin, so the product of this machine must not be used."""
    monkeypatch.setattr("sevsnp.commands.feature_info.host_product", lambda *_: own)
    other = answer(current=b"\1\2\0\0\0\0\0\5")
    with pytest.raises(SystemExit) as caught:
        main(["--status", other.hex()])
    assert caught.value.code == 64 and "--product Milan|Genoa|Turin" in capsys.readouterr().err
    for product in ("Genoa", "Turin"):
        assert main(["--status", other.hex(), "--product", product, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["product"] == product
    # Control: asked of this machine's own device, its own processor counts.
    monkeypatch.setattr("sevsnp.commands.feature_info.read_status", lambda *_: other)
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["product"] == own
