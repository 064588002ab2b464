# SPDX-License-Identifier: Apache-2.0
"""Firmware images: their content, the changes that we make, and the firmware that a guest may start with."""

import contextlib
import hashlib
import lzma
import random
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.firmware import gate, make
from sevsnp.firmware.gate import check_firmware, find_roads, problem
from sevsnp.firmware.known import ACCEPTED, OURS, REFUSED, STOCK
from sevsnp.firmware.make import CHANGES, change
from sevsnp.firmware.volumes import LZMA, MAX_PARTS, Unreadable, leaves, packed_sections

FFS2 = uuid.UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3").bytes_le
VARIABLES = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
NODE = bytes.fromhex("04041200") + "shim".encode("utf-16-le") + bytes(6)


def section(kind: int, body: bytes) -> bytes:
    whole = (len(body) + 4).to_bytes(3, "little") + bytes([kind]) + body
    return whole + bytes(-len(whole) % 4)


def guided(guid: bytes, body: bytes, attributes: int = 1) -> bytes:
    return section(0x02, guid + struct.pack("<HH", 24, attributes) + body)


def packed(body: bytes, size: int | None = None) -> bytes:
    data = bytearray(lzma.compress(body, format=lzma.FORMAT_ALONE))
    data[5:13] = (len(body) if size is None else size).to_bytes(8, "little")
    return guided(LZMA, bytes(data))


def file(body: bytes, kind: int = 0x05) -> bytes:
    whole = struct.pack("<16sHBB3sB", b"f" * 16, 0, kind, 0, (len(body) + 24).to_bytes(3, "little"), 0xF8) + body
    return whole + b"\xff" * (-len(whole) % 8)


def volume(*files: bytes, kind: bytes = FFS2, room: int = 64) -> bytes:
    body = b"".join(files) + b"\xff" * room
    return struct.pack("<16x16sQ4sIHHHBB", kind, 56 + len(body), b"_FVH", 0, 56, 0, 0, 0, 2) + body


def image(code: bytes = b"code") -> bytes:
    inner = section(0x17, volume(file(section(0x10, code))))
    return volume(file(packed(inner), kind=0x0B)) + volume(file(b"reset", kind=0x01))


def test_the_image_is_read_down_to_the_code() -> None:
    found = [leaf.data for leaf in leaves(image(b"abcd"))]
    assert found == [b"abcd", b"reset"]
    (one,) = packed_sections(image(b"abcd"))
    assert image(b"abcd")[one.data : one.data + one.length].startswith(b"\x5d") and b"abcd" in one.content


@pytest.mark.parametrize(
    "code",
    [NODE, b"x" * 7 + NODE, b"PCIR", b"cmp PCIR,", "\\EFI\\BOOT\\BOOTX64.EFI".encode("utf-16-le")],
    ids=["node", "odd", "signature", "in code", "file name"],
)
def test_each_pattern_of_refused_code_is_found_in_the_image(code: bytes) -> None:
    assert find_roads(image(b"harmless")) == ()
    (road,) = find_roads(image(code))
    assert "cannot be judged" not in road
    (plain,) = find_roads(volume(file(section(0x10, code))))
    assert "cannot be judged" not in plain


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        bytes(4096),
        image()[:-1],
        image() + b"\0",
        volume(file(b"x", kind=0x01), kind=b"u" * 16),
        volume(file(guided(b"g" * 16, section(0x10, b"code")))),
        volume(file(section(0x01, struct.pack("<IB", 4, 1) + b"code"))),
        volume(file(packed(section(0x10, b"code"), size=3))),
        volume(file(packed(section(0x10, b"code"), size=1 << 40))),
        volume(file(guided(LZMA, b"not packed"))),
        volume(file(b"x", kind=0x01), b"\0" * 8),
        volume(file((9999).to_bytes(3, "little") + b"\x10code")),
        volume(file(image(), kind=0x01)),
        volume(b"code", kind=VARIABLES),
    ],
    ids=[
        "empty", "zeros", "cut", "longer", "format", "packer", "tiano", "less", "more", "broken", "behind", "section",
        "raw file", "variables",
    ],
)  # fmt: skip
def test_an_unreadable_image_cannot_be_judged(wrong: bytes) -> None:
    (road,) = find_roads(wrong)
    assert road.startswith("cannot be judged: ")


def test_the_depth_and_the_size_of_nested_sections_are_limited() -> None:
    body = section(0x10, b"code")
    for _ in range(12):
        body = packed(body)
    assert "deep" in find_roads(volume(file(body)))[0]
    bomb = packed(section(0x19, bytes(15 << 20)))
    assert "content" in find_roads(volume(*[file(bomb) for _ in range(8)]))[0]


@pytest.mark.parametrize("kind", ["sections", "files", "volumes"])
def test_the_number_of_parts_is_limited(kind: str) -> None:
    """They can be small: a few thousand packed bytes then hold millions of them."""

    def many(number: int) -> bytes:
        if kind == "sections":
            return volume(file(packed(section(0x19, b"") * number)))
        if kind == "files":
            return volume(file(packed(section(0x17, volume(*[file(b"")] * number)))))
        return image() + volume(kind=VARIABLES, room=0) * number

    most = MAX_PARTS - 20
    assert find_roads(many(most)) == ()  # control
    assert f"more than {MAX_PARTS} volumes, files and sections" in find_roads(many(MAX_PARTS))[0]
    if kind == "sections":
        bomb = many(4 << 20)
        assert len(bomb) < 1 << 14 and sum(1 for _ in some(bomb)) <= MAX_PARTS


def some(data: bytes) -> Iterator[object]:
    with contextlib.suppress(Unreadable):
        yield from leaves(data)


def test_a_mutated_image_raises_no_unexpected_error() -> None:
    """A changed image is read or refused; no other exception is raised."""
    honest, chance = image(), random.Random(1)
    for _ in range(3000):
        changed = bytearray(honest)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        for cut in (bytes(changed), bytes(changed[: chance.randrange(len(changed))])):
            with contextlib.suppress(Unreadable):
                list(leaves(cut))


def content() -> bytes:
    made = bytearray(b"x" * 0x200000)
    for one in CHANGES:
        for place in one.places:
            made[place : place + len(one.old)] = one.old
    return bytes(made)


def test_only_the_intended_bytes_are_changed() -> None:
    before, after = content(), change(content(), "test")
    changed = {place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    meant = {place + at for one in CHANGES for place in one.places for at in range(len(one.old))}
    assert changed and changed <= meant and not any(one.old in after for one in CHANGES)


@pytest.mark.parametrize("one", CHANGES, ids=["node", "signature", "going on", "kept", "sum", "count", "file name"])
def test_an_image_with_the_old_bytes_elsewhere_is_refused(one: make.Change) -> None:
    for wrong in (content().replace(one.old, bytes(len(one.old))), content() + one.old, b"x" + content()):
        with pytest.raises(UserError, match="expected at"):
            change(wrong, "test")


def test_only_the_pinned_build_is_taken(tmp_path: Path) -> None:
    stock = tmp_path / "OVMF.amdsev.fd"
    stock.write_bytes(image())
    with pytest.raises(UserError, match=f"expected {STOCK}"):
        make.make_firmware(stock=stock, python=tmp_path / "python3", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_guest_starts_only_with_an_accepted_firmware(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.fd", tmp_path / "bad.fd"
    good.write_bytes(image())
    bad.write_bytes(image(NODE))
    assert not set(ACCEPTED) & set(REFUSED)
    check_firmware(OURS, tmp_path / "nowhere")
    check_firmware(digest(image()), good)
    assert "unchanged AmdSev OVMF" in problem(STOCK, tmp_path / "nowhere")
    assert "not here to be inspected" in problem("0" * 64, tmp_path / "nowhere")
    assert "has changed since" in problem("0" * 64, good)
    with pytest.raises(UserError, match=r"bad\.fd: firmware refused: it starts more than the three"):
        check_firmware(digest(image(NODE)), bad)


def test_a_reason_allows_an_unknown_firmware_but_never_a_refused_one(tmp_path: Path) -> None:
    bad = tmp_path / "bad.fd"
    bad.write_bytes(image(NODE))
    check_firmware(digest(image(NODE)), bad, "a vendor's, audited")
    with pytest.raises(UserError, match="refused"):
        check_firmware(STOCK, bad, "a vendor's, audited")
    assert gate.REMEDY.count("FIRMWARE_REASON=") == 1
