# SPDX-License-Identifier: Apache-2.0
"""How the appliance VM is started: disk formats are explicit, no other file is opened, and there is no network."""

import json
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.images.luks import format_options, image_size, root_size
from sevsnp.qemu import appliance as vm
from sevsnp.qemu import blocks
from sevsnp.qemu.appliance import Appliance, ApplianceDisk
from sevsnp.system.text import printable

MIB = 1 << 20


def arguments(monkeypatch: pytest.MonkeyPatch, *disks: ApplianceDisk) -> list[str]:
    # Whether this machine has KVM is another test's.
    monkeypatch.setattr(vm, "accelerator", lambda *_: "tcg")
    appliance = Appliance(Path("qemu"), Path("kernel"), Path("initrd"), Path("probe_cache"))
    return vm._arguments(appliance, disks, 7, Path("/t/console"), 1 << 30)


def test_the_appliance_has_no_network_and_no_default_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    words = arguments(monkeypatch)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert not any("net" in word.split(",")[0] for word in words)


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk", "vhdx", "vpc"])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_disk_is_opened_in_its_given_format(
    monkeypatch: pytest.MonkeyPatch, kind: vm.Format, read_only: bool
) -> None:
    # That an image names no other file is another test's.
    monkeypatch.setattr(blocks, "check_whole", lambda *_: None)
    words = arguments(monkeypatch, ApplianceDisk("disk", Path("/a,b"), kind, read_only))
    node = json.loads(words[words.index("-blockdev") + 1])
    assert (node["driver"], node["read-only"]) == (kind, read_only)
    assert node["file"] == {
        "driver": "file", "filename": "/a,b", "read-only": read_only, "cache": {"no-flush": True}
    }  # fmt: skip
    assert ("backing" in node) == (kind in ("qcow2", "vmdk")) and node.get("backing") is None
    assert any("serial=disk" in word for word in words)


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx", "vpc"])
def test_an_image_that_is_not_in_its_given_format_is_refused(tmp_path: Path, kind: vm.Format) -> None:
    """Control: a raw disk may begin with any bytes."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with pytest.raises(UserError, match="expected"):
        ApplianceDisk("disk", image, kind).block.arguments()
    assert ApplianceDisk("disk", image).block.arguments()


@pytest.mark.parametrize("data", [4096, 16 * MIB - 4096, 16 * MIB, 806 * MIB, 9 << 30, 1 << 40])
def test_an_image_has_room_for_tags_and_journal_and_hardly_more(data: int) -> None:
    size = image_size(data)
    assert size % MIB == 0
    # 48 bytes of tag for each 4,096, a journal of at most 1/128 and 64 MiB, and what is rounded.
    least = data + data // 4096 * 48 + MIB
    assert least < size <= least + min(data // 126, 64 * MIB) + 3 * MIB


def test_a_root_has_its_journal_in_addition_to_the_requested_size() -> None:
    small, large = root_size([], 20 * MIB), root_size([], 20 << 30)
    assert 20 * MIB + 4 * MIB <= small <= 20 * MIB + 16 * MIB
    assert (20 << 30) + (1 << 30) <= large < 22 << 30


def test_a_generated_key_gets_pbkdf2_and_a_given_key_a_bounded_argon2id() -> None:
    identity = "0f2a6c1e-5b1f-4f0c-9d3c-6a7b8c9d0e1f"
    made, given = format_options(identity, "made"), format_options(identity, "given")
    assert {f"--uuid={identity}", "--integrity=hmac-sha256", "--cipher=aes-xts-random"} <= set(made) & set(given)
    assert "--pbkdf=pbkdf2" in made
    assert {"--pbkdf=argon2id", "--pbkdf-memory=131072", "--pbkdf-parallel=1"} <= set(given)
    assert len({word.split("=")[0] for word in given}) == len(given), "no option twice"


@pytest.mark.parametrize(
    "line",
    [
        b"", b"x", b"[]", b"7", b'"error"', b"null", b"\xff", b"[" * 100_000, b'{"result": 7}', b'{"error": {}}',
        b'{"done": "1", "total": 2}', b'{"done": 1}', b'{"step": 1}',
    ],
    ids=lambda line: repr(line[:20]),
)  # fmt: skip
def test_a_malformed_answer_is_an_error(line: bytes) -> None:
    with pytest.raises(vm._ApplianceFailed):
        vm._parse(line)


@pytest.mark.parametrize("said", [{"result": {"a": 1}}, {"error": "x"}, {"done": 1, "total": 2, "step": "s"}, {}])
def test_a_well_formed_answer_is_read(said: dict[str, object]) -> None:
    assert vm._parse(json.dumps(said).encode()) == said


def test_control_characters_of_the_appliance_are_replaced() -> None:
    assert printable("a\x1b[2Jb\r\nü\x9b", keep="\n") == "a?[2Jb?\nü?"
