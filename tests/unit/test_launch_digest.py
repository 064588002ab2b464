import dataclasses
import hashlib
import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation.launch_digest import (
    NO_INITRD,
    KernelHashes,
    hash_cmdline,
    launch_digest,
    launch_digest_of,
)
from sevsnp.attestation.vmsa import VCPU_SIGNATURES
from sevsnp.emulation.measure import measure
from sevsnp.errors import UserError
from tests.unit.evidence import REAL_FIRMWARE, ROOT, SECTIONS, VECTORS, firmware, make_launch, needs_vectors, write_file

HASHES = KernelHashes(b"k" * 32, b"i" * 32, b"c" * 32)


def digest(image: bytes = firmware(), hashes: KernelHashes | bytes = HASHES, **changes: Any) -> bytes:
    options: dict[str, Any] = {"vcpus": 1, "vcpu_model": "EPYC-v4", "guest_features": 1, **changes}
    return launch_digest(io.BytesIO(image), len(image), hashes, **options)


def other_implementation(
    image: Path, kernel: Path, initrd: Path | None, cmdline: str, vcpus: int, model: str, features: int
) -> bytes:
    guest = pytest.importorskip("sevsnpmeasure.guest", reason="sev-snp-measure is not installed")
    from sevsnpmeasure.vcpu_types import CPU_SIGS

    found: bytes = guest.snp_calc_launch_digest(
        vcpus, CPU_SIGS[model], str(image), str(kernel), str(initrd or ""), cmdline, features, ""
    )
    return found


MODELS = ("EPYC-v4", "EPYC-IBPB", "EPYC-Rome-v3", "EPYC-Milan-v2", "EPYC-Genoa", "EPYC-Turin")


@pytest.mark.parametrize("image", ["synthetic", "reordered", "real"])
def test_equal_to_the_other_implementation(tmp_path: Path, image: str) -> None:
    path = tmp_path / "firmware"
    if image == "real":
        if not REAL_FIRMWARE.exists():
            pytest.skip("no AmdSev firmware here")
        path = REAL_FIRMWARE
    else:
        path.write_bytes(firmware(sections=SECTIONS if image == "synthetic" else SECTIONS[::-1]))
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"kernel" * 1000)
    initrd.write_bytes(b"initrd" * 1000)
    table = list(itertools.product((1, 2, 4, 64), MODELS, (0x1, 0x21), ("", "console=ttyS0 root=x"), (True, False)))
    for vcpus, model, features, cmdline, with_initrd in table[:: 7 if image == "real" else 1]:
        hashes = KernelHashes(
            hashlib.sha256(kernel.read_bytes()).digest(),
            hashlib.sha256(initrd.read_bytes()).digest() if with_initrd else NO_INITRD,
            hash_cmdline(cmdline.encode()),
        )
        with path.open("rb") as stream:
            mine = launch_digest(
                stream, path.stat().st_size, hashes, vcpus=vcpus, vcpu_model=model, guest_features=features
            )
        theirs = other_implementation(path, kernel, initrd if with_initrd else None, cmdline, vcpus, model, features)
        assert mine == theirs, (vcpus, model, features, cmdline, with_initrd)


def test_every_model_of_the_other_implementation() -> None:
    types = pytest.importorskip("sevsnpmeasure.vcpu_types")
    assert {name: VCPU_SIGNATURES[name] for name in types.CPU_SIGS} == types.CPU_SIGS


@needs_vectors
@pytest.mark.parametrize(
    ("vcpus", "features", "cmdline", "wanted"),
    [
        (1, 0x1, b"console=ttyS0 loglevel=7",
         "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"),
        (1, 0x21, b"console=ttyS0 loglevel=7",
         "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"),
        (4, 0x1, b"",
         "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"),
    ],
)  # fmt: skip
def test_vectors(vcpus: int, features: int, cmdline: bytes, wanted: str) -> None:
    image = (VECTORS / "idblock" / "ovmf_AmdSev_suffix.bin").read_bytes()
    hashes = KernelHashes(NO_INITRD, NO_INITRD, hash_cmdline(cmdline))
    assert digest(image, hashes, vcpus=vcpus, guest_features=features).hex() == wanted


def test_table_layout() -> None:
    table = HASHES.table()
    assert len(table) == 176 and table[168:] == bytes(8)
    assert int.from_bytes(table[16:18], "little") == 168
    assert table[36:68] == b"c" * 32 and table[86:118] == b"i" * 32 and table[136:168] == b"k" * 32


def test_memory_read_back_measures_as_the_files_do(tmp_path: Path) -> None:
    launch = make_launch(tmp_path)
    page = KernelHashes.of(launch).page(0xC00)
    options: dict[str, Any] = {"vcpus": 1, "vcpu_model": "EPYC-v4", "guest_features": 1}
    assert measure(firmware(), page, **options) == launch_digest_of(launch)
    for wrong in (page[:-1] + b"\1", bytes(4096)):
        assert measure(firmware(), wrong, **options) != launch_digest_of(launch)
    with pytest.raises(UserError, match="4096"):
        measure(firmware(), page[1:], **options)


def test_every_input_changes_the_digest() -> None:
    changed = firmware()
    changed = bytes((changed[0] ^ 1,)) + changed[1:]
    digests = {
        digest(),
        digest(changed),
        digest(hashes=dataclasses.replace(HASHES, kernel=b"x" * 32)),
        digest(hashes=dataclasses.replace(HASHES, initrd=b"x" * 32)),
        digest(hashes=dataclasses.replace(HASHES, cmdline=b"x" * 32)),
        digest(vcpus=2),
        digest(vcpu_model="EPYC-Milan"),
        digest(guest_features=0x21),
        digest(firmware(sections=SECTIONS[::-1])),
    }
    assert len(digests) == 9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vcpus": 0}, "vcpus"),
        ({"vcpu_model": "host"}, "vcpu_model: found 'host'"),
        ({"guest_features": 0}, "bit 0"),
        ({"guest_features": 1 | 1 << 64}, "64 bits"),
    ],
)
def test_inputs_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        digest(**changes)


@pytest.mark.parametrize("name", ["firmware", "kernel", "initrd", "cmdline"])
def test_files_are_compared_with_the_config(tmp_path: Path, name: str) -> None:
    launch = make_launch(tmp_path)
    launch_digest_of(launch)  # control
    path: Path = getattr(launch, name).path
    content = path.read_bytes()
    path.write_bytes(bytes((content[0] ^ 1,)) + content[1:])
    with pytest.raises(UserError, match=f"{path}: {name}: found SHA-256"):
        launch_digest_of(launch)
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: cannot read the {name}"):
        launch_digest_of(launch)


@pytest.mark.parametrize("cmdline", [b"a\n", b"a\0", b"\xc3\xa4", b"x" * 2034])
def test_cmdlines_that_the_kernel_would_see_differently(tmp_path: Path, cmdline: bytes) -> None:
    launch = make_launch(tmp_path)
    launch_digest_of(launch)  # control
    longest = dataclasses.replace(launch, cmdline=write_file(tmp_path / "cmdline", b"x" * 2033))
    launch_digest_of(longest)
    with pytest.raises(UserError, match="cmdline"):
        launch_digest_of(dataclasses.replace(launch, cmdline=write_file(tmp_path / "cmdline", cmdline)))


def test_large_files_are_not_read_whole(tmp_path: Path) -> None:
    sparse = tmp_path / "kernel"
    with sparse.open("wb") as stream:
        stream.truncate(256 << 20)
    found = hashlib.sha256()
    for _ in range(256):
        found.update(bytes(1 << 20))
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from sevsnp.vm.config import File\n"
        "from sevsnp.attestation import launch_digest\n"
        "resource.setrlimit(resource.RLIMIT_AS, (128 << 20, 128 << 20))\n"
        "launch_digest._hash_file(File(Path(sys.argv[1]), sys.argv[3]), 'kernel')\n"
    )
    subprocess.run([sys.executable, "-c", script, sparse, ROOT, found.hexdigest()], check=True)
