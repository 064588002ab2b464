# SPDX-License-Identifier: Apache-2.0
"""The file of the stage: an EFI image with the right parts at the right offsets, which QEMU accepts as a kernel."""

import re
import struct
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.stage import image
from sevsnp.stage.image import check_stage, make_stage, stage_image
from sevsnp.stage.layout import linux_of
from sevsnp.stage.tables import ADDRESS, all_tables
from tests.conftest import PROJECT

CODE = b"\x90" * 1000


def linux(size: int = 0x5000) -> bytes:
    """A file that begins as a kernel with EFI stub, and is otherwise zeros."""
    kernel = bytearray(size)
    kernel[:2], kernel[0x3C:0x40], kernel[0x40:0x46] = b"MZ", struct.pack("<I", 0x40), b"PE\0\0\x64\x86"
    kernel[0x1F1:0x26C] = bytes(range(1, 0x7C))
    kernel[0x1FE:0x200], kernel[0x200:0x202], kernel[0x202:0x206] = b"\x55\xaa", b"\xeb\x6a", b"HdrS"
    return bytes(kernel)


def parts(stage: bytes) -> dict[str, tuple[int, bytes]]:
    """Each section's address and content, read by the PE format's own rules."""
    pe = int.from_bytes(stage[0x3C:0x40], "little")
    machine, count, optional = struct.unpack_from("<HH12xH", stage, pe + 4)
    assert machine == 0x8664 and stage[pe : pe + 4] == b"PE\0\0"
    assert struct.unpack_from("<H", stage, pe + 24)[0] == 0x20B
    found = {}
    for number in range(count):
        name, size, address, _, place = struct.unpack_from("<8sIIII", stage, pe + 24 + optional + 40 * number)
        found[name.rstrip(b"\0").decode()] = (address, stage[place : place + size])
    return found


def test_the_parts_are_at_the_offsets_that_the_code_uses() -> None:
    kernel, content = linux(), all_tables(2)
    found = parts(stage_image(CODE, content, kernel))
    script = (PROJECT / "initramfs/stage/stage.ld").read_text()
    places = {name: int(value, 16) for name, value in re.findall(r"(\w+) = (0x\w+);", script)}
    (start,) = re.findall(r"\.text (0x\w+) :", script)
    assert found[".text"] == (int(start, 16), CODE)
    assert found[".acpi"] == (places["tables"], content)
    assert found[".linux"] == (places["kernel"], kernel)
    assert found[".carried"] == (places["carried"], struct.pack("<QQQ", ADDRESS, len(content), len(kernel)))


def test_the_headers_have_the_values_that_the_firmware_reads() -> None:
    stage = stage_image(CODE, all_tables(2), linux())
    pe = int.from_bytes(stage[0x3C:0x40], "little")
    entry, alignment, block = (struct.unpack_from("<I", stage, pe + 24 + place)[0] for place in (16, 32, 36))
    size, headers = struct.unpack_from("<II", stage, pe + 24 + 56)
    assert (entry, alignment, block) == (0x1000, 0x1000, 0x200)
    assert size % 0x1000 == 0 and size >= 0x8000 + len(linux()) and len(stage) % block == 0
    places = [struct.unpack_from("<I", stage, pe + 24 + 240 + 40 * number + 20)[0] for number in range(4)]
    assert places[0] == headers and pe + 24 + 240 + 4 * 40 <= headers and all(place % block == 0 for place in places)


def test_qemu_reads_only_the_setup_header_of_the_kernel() -> None:
    kernel = linux()
    stage = stage_image(CODE, all_tables(2), kernel)
    assert stage[0x1F1] == 1  # sectors of the setup part
    assert stage[0x1F2:0x26C] == kernel[0x1F2:0x26C]
    assert not any(stage[0x26C:0x288]) and not any(stage[0x40:0x1F1])


@pytest.mark.parametrize(("code", "content"), [(b"", b"x"), (b"x" * 0x1001, b"x"), (b"x", b""), (b"x", b"x" * 0x5001)])
def test_parts_that_do_not_fit_are_refused(code: bytes, content: bytes) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        stage_image(code, content, linux())


def patched(place: int, content: bytes) -> bytes:
    kernel = linux()
    return kernel[:place] + content + kernel[place + len(content) :]


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (b"", "setup header is missing"),
        (b"MZ" + bytes(0x300), "setup header is missing"),
        (patched(0, b"ZZ"), "no EFI stub"),
        (patched(0x3C, b"\xff\xff\xff\xff"), "no EFI stub"),
        (patched(0x44, b"\x4c\x01"), "no EFI stub"),  # for 32-bit machines
        (patched(0x201, b"\xff"), "ends at 0x301"),
    ],
)
def test_a_file_that_is_not_a_kernel_is_refused(kernel: bytes, said: str, tmp_path: Path) -> None:
    for name, content in {"code": CODE, "tables": all_tables(1), "kernel": kernel}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        make_stage(
            code=tmp_path / "code", tables=tmp_path / "tables", kernel=tmp_path / "kernel", output=tmp_path / "stage"
        )
    assert not (tmp_path / "stage").exists()


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Path]:
    """The files of a stage for two vCPUs, by argument, and the stage itself."""
    for name, content in {"code": CODE, "tables": all_tables(2), "kernel": linux()}.items():
        (tmp_path / name).write_bytes(content)
    files = {name: tmp_path / name for name in ("code", "tables", "kernel")}
    make_stage(**files, output=tmp_path / "stage")
    return {**files, "stage": tmp_path / "stage"}


def test_a_stage_with_its_own_parts_passes_the_check(made: dict[str, Path]) -> None:
    check_stage(vcpus=2, **made)
    assert linux_of(made["stage"].read_bytes()) == linux()


@pytest.mark.parametrize("name", ["stage", "code", "kernel"])
def test_a_stage_with_a_changed_part_is_refused(made: dict[str, Path], name: str) -> None:
    content = made[name].read_bytes()
    made[name].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="not made of"):
        check_stage(vcpus=2, **made)


def test_tables_for_another_number_of_vcpus_are_refused(made: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="not the ACPI tables for 3 vCPUs"):
        check_stage(vcpus=3, **made)


@pytest.mark.parametrize("content", [b"", b"MZ", linux(), linux(0x900)])
def test_a_file_that_is_not_a_stage_is_used_as_the_kernel(content: bytes) -> None:
    assert linux_of(content) == content


def test_a_kernel_as_debian_s_is_accepted() -> None:
    image.check_kernel(Path("kernel"), linux())
