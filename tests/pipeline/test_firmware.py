# SPDX-License-Identifier: Apache-2.0
"""The built firmware, and every place that accepts one: each accepts only one that starts the hashed files alone."""

import contextlib
import dataclasses
import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.firmware.gate import find_roads, problem
from sevsnp.firmware.known import ACCEPTED, OURS, REFUSED, STOCK
from sevsnp.firmware.make import CHANGES, make_firmware
from sevsnp.firmware.released import take_firmware
from sevsnp.firmware.volumes import Packed, packed_sections
from sevsnp.measurement.signed_config import block_of
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import File, read_vm_config, render_vm_config
from tests.conftest import PROJECT, Built
from tests.support.copies import copy_built, one_line
from tests.support.replacing import replaced_once

REASON = "a vendor's, audited"


@pytest.fixture(scope="module")
def stock(built: Built) -> Path:
    return built.build / "snp-release/usr/share/ovmf/OVMF.amdsev.fd"


@pytest.fixture(scope="module")
def ours(built: Built) -> Path:
    return built.build / "firmware/OVMF.fd"


def repacked(image: bytes, section: Packed, content: bytes) -> bytes:
    """The image with ``content`` packed by this Python, so that its digest is in no list."""
    packed = bytearray(lzma.compress(content, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME))
    packed[5:13] = len(content).to_bytes(8, "little")
    packed += b"\0" * (section.length - len(packed))
    return image[: section.data] + bytes(packed) + image[section.data + section.length :]


@pytest.fixture(scope="module")
def unknown(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the unchanged build in bytes that nobody has seen."""
    image = stock.read_bytes()
    (section,) = packed_sections(image)
    path = tmp_path_factory.mktemp("unknown") / "vendor.fd"
    path.write_bytes(repacked(image, section, section.content + b"\x04\0\0\x19"))
    assert sha256_file(path) not in {*ACCEPTED, *REFUSED}
    return path


def test_the_listed_digests_are_those_of_the_files(stock: Path, ours: Path) -> None:
    assert (sha256_file(stock), sha256_file(ours)) == (STOCK, OURS)
    assert problem(OURS, ours) == "" and "unchanged" in problem(STOCK, stock)


def test_an_image_is_judged_by_its_content(stock: Path, ours: Path, unknown: Path) -> None:
    """Independent of the lists of digests: ``find_roads`` finds some in the unchanged build, and none in ours."""
    for path in (stock, unknown):
        found = find_roads(path.read_bytes())
        for sign in ("(a name in", "(a signature in", "(a file name in"):
            assert any(sign in road for road in found)
    assert find_roads(ours.read_bytes()) == ()
    assert problem(sha256_file(unknown), unknown).startswith("it ")


def test_the_firmware_of_a_release(built: Built, stock: Path, ours: Path, unknown: Path, tmp_path: Path) -> None:
    """It is made as from the lock's firmware, or passes the gate as it is, or is refused by name."""

    def taken(image: Path) -> bytes:
        output = tmp_path / "OVMF.fd"
        take_firmware(stock=image, python=built.build / "snp-release/bin/python3", output=output)
        return output.read_bytes()

    assert taken(stock) == taken(ours) == ours.read_bytes()
    (tmp_path / "OVMF.fd").unlink()
    none = tmp_path / "none.fd"
    none.write_bytes(b"no firmware")
    for image in (unknown, none):
        with pytest.raises(UserError, match="firmware refused") as found:
            taken(image)
        assert found.value.message.startswith(f"{image}: ") and sha256_file(image) in found.value.message
        assert not (tmp_path / "OVMF.fd").exists()


@pytest.mark.full
def test_each_road_alone_is_found(stock: Path) -> None:
    image = stock.read_bytes()
    (section,) = packed_sections(image)
    signs = dict(zip(CHANGES, ("a name", "a signature", "", "", "", "", "a file name"), strict=True))
    for kept, sign in signs.items():
        content = section.content
        for change in CHANGES:
            content = content if change is kept else content.replace(change.old, change.new)
        found = find_roads(repacked(image, section, content))
        # Code has no sign of its own that another build would have too; without the name it has nothing to start.
        assert bool(found) == bool(sign) and all(f"({sign} in" in road for road in found), kept
    closed = section.content
    for change in CHANGES:
        closed = closed.replace(change.old, change.new)
    assert find_roads(repacked(image, section, closed)) == ()  # the control arm: repacked alone is no fault


@pytest.mark.parametrize("cut", [1, 4096, 1 << 21])
def test_a_truncated_firmware_cannot_be_judged(ours: Path, tmp_path: Path, cut: int) -> None:
    part = tmp_path / "part.fd"
    for data in (ours.read_bytes()[:-cut], ours.read_bytes()[cut:]):
        part.write_bytes(data)
        assert "cannot be judged" in problem(sha256_file(part), part)


def test_the_build_gives_only_the_pinned_bytes(built: Built, stock: Path, ours: Path, tmp_path: Path) -> None:
    """Made again they are the same; another compressor, another input and another place are refused."""
    made = tmp_path / "made.fd"
    make_firmware(stock=stock, python=built.tools / "python3", output=made)
    assert made.read_bytes() == ours.read_bytes() and made.stat().st_size == stock.stat().st_size
    made.unlink()
    other = tmp_path / "python3"
    changed = 'exec(sys.argv[3].replace("**sizes", "**sizes, \'nice_len\': 200"))'
    other.write_text(f"#!{sys.executable}\nimport sys\n{changed}\n")
    other.chmod(0o755)
    with pytest.raises(UserError, match="the compressor differs"):
        make_firmware(stock=stock, python=other, output=made)
    flipped = tmp_path / "flipped.fd"
    data = bytearray(stock.read_bytes())
    data[0x100000] ^= 1
    flipped.write_bytes(data)
    with pytest.raises(UserError, match=f"found SHA-256 .*, expected {STOCK}") as refused:
        make_firmware(stock=flipped, python=built.tools / "python3", output=made)
    assert "packages.lock" in str(refused.value) and not made.exists()


@pytest.fixture(scope="module")
def copy(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    directory = tmp_path_factory.mktemp("firmware")
    yield copy_built(built, directory / "project")
    shutil.rmtree(directory)


def test_setup_refuses_any_other_firmware(copy: Built, stock: Path, unknown: Path, tmp_path: Path) -> None:
    for words, expected in (
        ([f"FIRMWARE={stock}"], "unchanged AmdSev OVMF"),
        ([f"FIRMWARE={stock}", f"FIRMWARE_REASON={REASON}"], "unchanged AmdSev OVMF"),
        ([f"FIRMWARE={unknown}"], "firmware refused: it "),
        ([f"FIRMWARE={tmp_path}/nonsuch.fd"], "nonsuch.fd"),
    ):
        done = copy.doit("setup_verity", *words, check=False)
        assert done.returncode != 0 and expected in one_line(done.stdout), done.stdout


def test_a_firmware_reason_is_recorded_in_the_vm_config(copy: Built, unknown: Path) -> None:
    before = copy.config("snp").launch
    copy.doit("setup_verity", f"FIRMWARE={unknown}", f"FIRMWARE_REASON={REASON}")
    after = copy.config("snp").launch
    assert after.firmware_reason == REASON and after.firmware.sha256 == sha256_file(unknown)
    assert [after.kernel, after.initrd, after.cmdline] == [before.kernel, before.initrd, before.cmdline]
    copy.doit("setup_verity")
    assert copy.config("snp").launch == before


@contextlib.contextmanager
def naming(config: Path, firmware: Path) -> Iterator[None]:
    """The VM config or launch file for a while with another firmware, whose digest is right."""
    kept, read = config.read_text(), read_vm_config(config)
    launch = dataclasses.replace(read.launch, firmware=File(firmware, sha256_file(firmware)))
    config.unlink()  # what was built is hard-linked
    config.write_text(render_vm_config(dataclasses.replace(read, launch=launch)))
    try:
        assert read_vm_config(config).launch.firmware.path == firmware
        yield
    finally:
        config.write_text(kept)


@pytest.mark.parametrize("name", ["stock", "unknown"])
def test_run_attest_and_measure_refuse_another_firmware(copy: Built, name: str, request: pytest.FixtureRequest) -> None:
    firmware = request.getfixturevalue(name)
    config = copy.build / "verity/vm-config-verity.emulated.toml"
    with naming(config, firmware):
        for task in ("run_sev_snp_verity", "attest_verity"):
            done = copy.doit(task, f"VM_CONFIG={config}", "PLATFORM=emulated", check=False)
            line = one_line(done.stdout)
            assert done.returncode != 0 and f"{firmware}: firmware refused: " in line, done.stdout
            assert "do not set FIRMWARE" in done.stdout
        measured = measure("--vm-config", config)
        assert measured.returncode == 64 and "firmware refused" in measured.stderr and not measured.stdout
        with pytest.raises(UserError, match="firmware refused"):
            block_of(read_vm_config(config))
    block_of(read_vm_config(config))  # the control arm: with ours it is signed


def measure(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sevsnp.commands.measure", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_measure_names_the_reason(stock: Path, ours: Path, unknown: Path) -> None:
    plain = measure("--firmware", ours)
    assert plain.returncode == 0 and plain.stderr == ""
    refused = [
        measure("--firmware", stock, "--firmware-reason", REASON),
        measure("--firmware", stock),
        measure("--firmware", unknown),
    ]
    assert [(done.returncode, done.stdout) for done in refused] == [(64, "")] * 3
    reasoned = measure("--firmware", unknown, "--firmware-reason", REASON, "--json")
    assert list(json.loads(reasoned.stdout)) == ["launch_digests"]
    assert reasoned.returncode == 0 and reasoned.stderr.startswith("open: ") and REASON in reasoned.stderr


def test_a_bundle_refuses_another_firmware_without_other_tools(built: Built, unknown: Path, tmp_path: Path) -> None:
    """The Python of the bundle examines the image; the host has only that and a QEMU."""
    bundle = tmp_path / "bundle"
    subprocess.run(["cp", "-a", "--", built.build / "host-bundle", bundle], check=True)
    firmware = bundle / "OVMF.fd"
    for name in ("launch.toml", "launch.emulated.toml"):
        text = replaced_once((bundle / name).read_text(), OURS, sha256_file(unknown))
        (bundle / name).unlink()
        (bundle / name).write_text(text)
    firmware.unlink()
    shutil.copyfile(unknown, firmware)
    words = [str(bundle / "run"), "--platform", "emulated", "--restricted", "--qemu", str(built.qemu)]
    done = subprocess.run(
        words, env={"PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        cwd="/", timeout=600,
    )  # fmt: skip
    assert done.returncode == 1 and "OVMF.fd: firmware refused: it " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


LOADED = """\
import sys
from pathlib import Path
from sevsnp.firmware.gate import check_firmware
check_firmware(sys.argv[1], Path(sys.argv[2]))
print([name for name in ("lzma", "sevsnp.firmware.volumes") if name in sys.modules])
"""


def test_our_own_firmware_is_not_examined(ours: Path, tmp_path: Path) -> None:
    """The modules that examine images are not loaded for it, and its file need not exist."""

    def loaded(digest: str, path: Path) -> str:
        words = [sys.executable, "-c", LOADED, digest, str(path)]
        done = subprocess.run(words, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()

    assert loaded(OURS, tmp_path / "nonsuch.fd") == "[]"
    image = bytearray(ours.read_bytes())
    (section,) = packed_sections(bytes(image))
    image[section.data + section.length - 1] = 1  # padding behind the packed data: the same content, another digest
    (tmp_path / "other.fd").write_bytes(image)
    assert loaded(sha256_file(tmp_path / "other.fd"), tmp_path / "other.fd") == "['lzma', 'sevsnp.firmware.volumes']"
