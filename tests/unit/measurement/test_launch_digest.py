# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sevsnp.emulation.measure import measure
from sevsnp.errors import UserError
from sevsnp.measurement.launch_digest import (
    NO_INITRD,
    KernelHashes,
    Machine,
    hash_cmdline,
    launch_digest,
    launch_digest_of,
    launch_digests_of,
    measure_firmware,
    measure_svsm,
    svsm_save_area,
)
from sevsnp.measurement.vmsa import HOST_KERNELS, VCPU_SIGNATURES, Vmm, cpu_signature, host_kernel, vcpu_signature
from tests.support.evidence import (
    METADATA,
    REAL_FIRMWARE,
    RESET_BLOCK,
    ROOT,
    SECTIONS,
    VECTORS,
    firmware,
    make_launch,
    needs_vectors,
    table_entry,
    write_file,
)

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


def test_models_by_number() -> None:
    types = pytest.importorskip("sevsnpmeasure.vcpu_types")
    for family, model, stepping in itertools.product((0xF, 0x17, 0x19, 0x1A, 0x10E), (0, 1, 0x11, 0xA0, 0xFF), (0, 15)):
        assert cpu_signature(family, model, stepping) == types.cpu_sig(family, model, stepping)
        assert vcpu_signature(f"{family}/{model:#x}/{stepping}") == cpu_signature(family, model, stepping)
    assert vcpu_signature("0x19/17/0") == vcpu_signature("EPYC-Genoa")
    for wrong in ("host", "max", "25/17", "25/17/16", "25/256/0", "999/1/1", "-1/1/1", "epyc", ""):
        with pytest.raises(UserError):
            vcpu_signature(wrong)


# What sev-snp-measure 0.0.8 and 0.0.9 print, the last releases for these kernels.
OLD_KERNELS = {
    ("before-6.6", 1): "61264f1d2adf7e5b6c7ee2fd415e6e9ec6c36c5e956b1fd7"
    "a1c0d5b957c80cf53a2a1184a08cea8b4d42598910cc75e5",
    ("before-6.6", 5): "ba6926f86108a27545f74a2943a6e5aa602ae3daf2cd9609"
    "f4073835f3afc9127dfa718170d651d1a5407715a2d57f87",
    ("6.6", 1): "bbc96b56528cbb2620eeff767f35c9c8192b8152c2159c097bb2726df95429a3f6eca4f3e61221c36b21a8c5811baaf5",
    ("6.6", 5): "054417f909d53581f5123a447206b46ba31bf222702b5aa91916cfb89d798d838bec415e7446d71ca845a754986608fa",
}


def test_generations_of_host_kernels(tmp_path: Path) -> None:
    image = firmware(sections=[section for section in SECTIONS if section[2] != 4])  # which they do not know
    launch = make_launch(tmp_path, firmware=write_file(tmp_path / "old", image))
    found: dict[tuple[str, int], str] = {}
    for name, kernel in HOST_KERNELS.items():
        machine = Machine("EPYC-v4", kernel.guest_features, host_kernel(name))
        found |= {(name, vcpus): one.hex() for vcpus, one in launch_digests_of(launch, (5, 1), machine).items()}
    assert {key: found[key] for key in OLD_KERNELS} == OLD_KERNELS
    assert len(set(found.values())) == 8, "no two generations measure the same"
    assert found["6.9", 1] == launch_digest_of(launch).hex()
    assert found["secure-tsc", 1] == launch_digest_of(dataclasses.replace(launch, guest_features=0x201)).hex()
    with pytest.raises(UserError, match=r"found '6.7', expected one of before-6.6"):
        host_kernel("6.7")


@pytest.mark.parametrize("vmm", list(Vmm))
@pytest.mark.parametrize("with_kernel", [True, False])
def test_monitors_equal_to_the_other_implementation(tmp_path: Path, vmm: Vmm, with_kernel: bool) -> None:
    guest = pytest.importorskip("sevsnpmeasure.guest", reason="sev-snp-measure is not installed")
    from sevsnpmeasure.vmm_types import VMMType

    theirs = {Vmm.QEMU: VMMType.QEMU, Vmm.EC2: VMMType.ec2, Vmm.GCE: VMMType.gce}[vmm]
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"kernel")
    hashes = KernelHashes(hashlib.sha256(b"kernel").digest(), NO_INITRD, hash_cmdline(b"word"))
    signature = VCPU_SIGNATURES["EPYC-Milan"]
    for number, sections in enumerate((SECTIONS, SECTIONS[::-1])):
        path = tmp_path / f"firmware{number}"
        path.write_bytes(firmware(sections=sections))
        machine = Machine("EPYC-Milan", 0x1, vmm=vmm)
        mine = measure_firmware(path, hashes if with_kernel else None, (1, 2, 7), machine)[0]
        for vcpus, one in mine.items():
            words = ("kernel", "", "word") if with_kernel else ("", "", "")
            named = [str(tmp_path / words[0]) if with_kernel else "", *words[1:]]
            assert one == guest.snp_calc_launch_digest(vcpus, signature, str(path), *named, 0x1, "", theirs)


def test_qemu_ec2_and_gce_give_different_digests(tmp_path: Path) -> None:
    path = tmp_path / "firmware"
    path.write_bytes(firmware())
    found = {vmm: measure_firmware(path, HASHES, [1], Machine("EPYC-v4", 1, vmm=vmm))[0][1] for vmm in Vmm}
    assert len(set(found.values())) == 3
    # What EC2 and GCE show a guest does not depend on a model; QEMU without one has nothing to show.
    assert measure_firmware(path, HASHES, [1], Machine("", 1, vmm=Vmm.EC2))[0][1] == found[Vmm.EC2]
    with pytest.raises(UserError, match="vcpu_model"):
        measure_firmware(path, HASHES, [1], Machine("", 1))


@needs_vectors
def test_a_firmware_without_kernel_hashes(tmp_path: Path) -> None:
    path = VECTORS / "idblock" / "ovmf_OvmfX64_suffix.bin"
    guest = pytest.importorskip("sevsnpmeasure.guest", reason="sev-snp-measure is not installed")
    theirs = guest.snp_calc_launch_digest(2, VCPU_SIGNATURES["EPYC-v4"], str(path), "", "", "", 0x1, "")
    assert measure_firmware(path, None, [2], Machine("EPYC-v4", 1))[0][2] == theirs
    with pytest.raises(UserError, match="not an AmdSev build"):
        measure_firmware(path, HASHES, [2], Machine("EPYC-v4", 1))


SVSM_INFO = "a789a612-0597-4c4b-a49f-cbb1fe9d1ddd"


def svsm(sections: Any = SECTIONS[:4], offset: int = 0x1234, guid: str = SVSM_INFO) -> bytes:
    entries = [table_entry(METADATA, struct.pack("<I", 0x800)), table_entry(guid, struct.pack("<I", offset))]
    return firmware(size=0x8000, sections=sections, entries=entries)


def test_svsm_equal_to_the_other_implementation(tmp_path: Path) -> None:
    guest = pytest.importorskip("sevsnpmeasure.guest", reason="sev-snp-measure is not installed")
    below, above = tmp_path / "svsm", tmp_path / "firmware"
    above.write_bytes(firmware())
    for sections, variables, model in (
        (SECTIONS[:4], 0x1000, "EPYC-v4"),
        (SECTIONS[3::-1], 0x84000, "EPYC-Genoa"),
        (SECTIONS[:5], 0x1000, "EPYC-Milan"),
    ):
        below.write_bytes(svsm(sections))
        for vcpus, one in measure_svsm(above, below, variables, (1, 3), model).items():
            signature = VCPU_SIGNATURES[model]
            assert one == guest.svsm_calc_launch_digest(vcpus, signature, str(above), variables, str(below), False)
        with contextlib.chdir(tmp_path):
            guest.svsm_calc_launch_digest(2, signature, str(above), variables, str(below), True)
        theirs = tuple((tmp_path / f"vmsa{number}.bin").read_bytes() for number in (0, 1))
        assert svsm_save_area(above, below, variables, model) == theirs


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (svsm(guid=RESET_BLOCK), "not an SVSM"),
        (svsm(offset=0x8000), "an entry at 0x8000 of 0x8000 bytes"),
        (svsm(sections=((0xFFFF8000, 0x1000, 1),)), "overlap"),
        (svsm()[:-1], "multiple of 4096"),
    ],
)
def test_a_file_that_is_not_an_svsm_is_refused_by_name(tmp_path: Path, image: bytes, words: str) -> None:
    below, above = tmp_path / "svsm", tmp_path / "firmware"
    above.write_bytes(firmware())
    below.write_bytes(svsm())
    measure_svsm(above, below, 0x1000, [1], "EPYC-v4")  # control
    below.write_bytes(image)
    with pytest.raises(UserError, match=words) as caught:
        measure_svsm(above, below, 0x1000, [1], "EPYC-v4")
    assert str(below) in caught.value.message


def test_several_vcpu_counts_at_once_give_the_same_digests_as_single_ones(tmp_path: Path) -> None:
    launch = make_launch(tmp_path)
    counts = (64, 1, 2, 4, 2)
    together = launch_digests_of(launch, counts)
    assert set(together) == set(counts) and len(set(together.values())) == 4
    assert together == {one: launch_digest_of(dataclasses.replace(launch, vcpus=one)) for one in counts}
    for wrong in (0, -1, 4097):
        with pytest.raises(UserError, match=f"vcpus: found {wrong}"):
            launch_digests_of(launch, [1, wrong])


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


def test_guest_memory_and_files_give_the_same_digest(tmp_path: Path) -> None:
    launch = make_launch(tmp_path)
    page = KernelHashes.of(launch).page(0xC00)
    options: dict[str, Any] = {"vcpus": 1, "vcpu_model": "EPYC-v4", "guest_features": 1}
    image = launch.firmware.path.read_bytes()
    assert measure(image, page, **options) == launch_digest_of(launch)
    for wrong in (page[:-1] + b"\1", bytes(4096)):
        assert measure(image, wrong, **options) != launch_digest_of(launch)
    with pytest.raises(UserError, match="4096"):
        measure(image, page[1:], **options)


@pytest.mark.parametrize("name", ["firmware", "kernel", "initrd", "cmdline"])
def test_a_changed_file_is_refused_with_the_command_that_makes_it(tmp_path: Path, name: str) -> None:
    launch = make_launch(tmp_path)
    launch_digest_of(launch)  # the control
    file = getattr(launch, name)
    file.path.write_bytes(file.path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"{name}: found SHA-256 .*, the VM config says {file.sha256}") as caught:
        launch_digest_of(launch)
    assert caught.value.hint.rpartition(": ")[2] == f"./doitw setup_{launch.workflow}"


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
    with pytest.raises(UserError, match=f"{path}: cannot read the {name}: No such file"):
        launch_digest_of(launch)
    # A pipe without a writer would wait for ever, and a device has no end.
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{path}: cannot read the {name}: not a regular file"):
        launch_digest_of(launch)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{path}: cannot read the {name}: not a regular file"):
        launch_digest_of(launch)


@pytest.mark.parametrize("cmdline", [b"a\n", b"a\0", b"\xc3\xa4", b"x" * 2034])
def test_command_lines_that_the_kernel_would_read_differently_are_refused(tmp_path: Path, cmdline: bytes) -> None:
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
        "from pathlib import Path; from sevsnp.vm_config.config import File\n"
        "from sevsnp.measurement import launch_digest\n"
        "resource.setrlimit(resource.RLIMIT_AS, (128 << 20, 128 << 20))\n"
        "launch_digest._hash_file(None, File(Path(sys.argv[1]), sys.argv[3]), 'kernel')\n"
    )
    subprocess.run([sys.executable, "-c", script, sparse, ROOT, found.hexdigest()], check=True)
