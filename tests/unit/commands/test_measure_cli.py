# SPDX-License-Identifier: Apache-2.0
"""measure: VM configs and files, several vCPU counts, and the inputs that it refuses."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.commands.measure import main
from sevsnp.measurement.launch_digest import launch_digest_of
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import Stage, VmConfig, render_vm_config
from tests.support.evidence import REFERENCE, ROOT, make_launch, write_file

THEIRS = shutil.which("sev-snp-measure", path=str(Path(sys.executable).parent))


@pytest.fixture
def config(tmp_path: Path) -> VmConfig:
    launch = make_launch(tmp_path)
    made = VmConfig(
        tmp_path / "vm.toml", launch, dataclasses.replace(REFERENCE, launch_digest=launch_digest_of(launch))
    )
    made.source.write_text(render_vm_config(made))
    return made


def measured(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_vm_config(config: VmConfig, capsys: pytest.CaptureFixture[str]) -> None:
    own = launch_digest_of(config.launch).hex()
    assert measured(capsys, "--vm-definition", config.source) == own + "\n"
    document = json.loads(measured(capsys, "--vm-config", config.source, "--vcpus", "4,1", "--json"))
    four = launch_digest_of(dataclasses.replace(config.launch, vcpus=4)).hex()
    assert document == {"launch_digests": {"1": own, "4": four}, "reference": own, "equal": True}
    assert measured(capsys, "--vm_definition", config.source, "--vcpus", "1,4") == f"   1  {own}\n   4  {four}\n"


def test_a_different_reference_digest_is_named(config: VmConfig, capsys: pytest.CaptureFixture[str]) -> None:
    text = config.source.read_text()
    own = launch_digest_of(config.launch).hex()
    config.source.write_text(text.replace(own, "00" * 48))
    assert main(["--vm-config", str(config.source)]) == 0
    shown = capsys.readouterr()
    assert shown.out == own + "\n" and "reference differs: 0000" in shown.err
    assert json.loads(measured(capsys, "--vm-config", config.source, "--json"))["equal"] is False


def test_a_host_bundles_launch_file_has_no_reference(config: VmConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config.source.write_text(render_vm_config(dataclasses.replace(config, reference=None)))
    document = json.loads(measured(capsys, "--vm-config", config.source, "--json"))
    assert list(document) == ["launch_digests"]


def test_other_vcpu_counts_without_acpi_give_a_warning(
    config: VmConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--vm-config", str(config.source), "--vcpus"]
    assert main([*words, "1,2"]) == 0 and "needs ACPI" not in capsys.readouterr().err  # control
    cmdline = write_file(tmp_path / "cmdline", b"console=ttyS0 acpi=off")
    launch = dataclasses.replace(config.launch, cmdline=cmdline)
    config.source.write_text(render_vm_config(dataclasses.replace(config, launch=launch)))
    assert main([*words, "1"]) == 0 and "needs ACPI" not in capsys.readouterr().err
    assert main([*words, "1,2"]) == 0 and "needs ACPI" in capsys.readouterr().err


def test_a_stage_with_another_vcpu_count_gives_a_warning(config: VmConfig, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--vm-config", str(config.source), "--vcpus"]
    assert main([*words, "1,2"]) == 0 and "its kernel is a stage" not in capsys.readouterr().err  # control
    reference = dataclasses.replace(config.require_reference(), acpi=False, stage=Stage(*["0" * 64] * 3))
    config.source.write_text(render_vm_config(dataclasses.replace(config, reference=reference)))
    assert main([*words, "1"]) == 0 and "its kernel is a stage" not in capsys.readouterr().err
    assert main([*words, "1,2"]) == 0 and "its kernel is a stage" in capsys.readouterr().err


@pytest.mark.skipif(THEIRS is None, reason="sev-snp-measure is not installed")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([], ["--vcpu-type", "EPYC-v4"]),
        (["--vcpu-model", "25/17/0", "--guest-features", "0x21"],
         ["--vcpu-family", "25", "--vcpu-model", "17", "--vcpu-stepping", "0", "--guest-features", "0x21"]),
        (["--vcpu-model", "EPYC-Milan", "--host-kernel", "secure-tsc"],
         ["--vcpu-type", "EPYC-Milan", "--guest-features", "0x201"]),
        (["--vmm", "ec2"], ["--vmm-type", "ec2", "--vcpu-type", "EPYC-v4"]),
        (["--vmm", "gce"], ["--vmm-type", "gce", "--vcpu-type", "EPYC-v4"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kernel", [["--kernel", "--initrd", "--append"], ["--kernel"], []])
def test_files_measure_as_with_sev_snp_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ours: list[str], theirs: list[str], kernel: list[str]
) -> None:
    make_launch(tmp_path)
    values = {"--kernel": str(tmp_path / "kernel"), "--initrd": str(tmp_path / "initrd"), "--append": "a b"}
    files = [word for name in kernel for word in (name, values[name])]
    found = json.loads(measured(capsys, "--firmware", tmp_path / "firmware", *files, *ours, "--vcpus=1,3", "--json"))
    assert THEIRS
    for vcpus, digest in found["launch_digests"].items():
        argv = [THEIRS, "--mode", "snp", "--ovmf", tmp_path / "firmware", "--vcpus", vcpus, *files, *theirs]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == digest


MODES: list[tuple[list[str], list[str]]] = [
    (["--mode", "sev"], ["--mode", "sev"]),
    (["--mode", "seves", "--vcpus", "1"], ["--mode", "seves", "--vcpus", "1", "--vcpu-type", "EPYC-v4"]),
    (["--mode", "seves", "--vcpus", "3", "--vcpu-model", "EPYC-Milan"],
     ["--mode", "seves", "--vcpus", "3", "--vcpu-type", "EPYC-Milan"]),
    (["--mode", "seves", "--vcpus", "2", "--vmm", "ec2"],
     ["--mode", "seves", "--vcpus", "2", "--vmm-type", "ec2", "--vcpu-type", "EPYC-v4"]),
    (["--vcpus", "2"], ["--mode", "snp", "--vcpus", "2", "--vcpu-type", "EPYC-v4"]),
    (["--vcpus", "2", "--output-format", "base64"],
     ["--mode", "snp", "--vcpus", "2", "--vcpu-type", "EPYC-v4", "--output-format", "base64"]),
]  # fmt: skip


@pytest.mark.skipif(THEIRS is None, reason="sev-snp-measure is not installed")
@pytest.mark.parametrize(("ours", "theirs"), MODES, ids=lambda words: " ".join(words))
def test_modes_hashes_and_save_areas_equal_those_of_sev_snp_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ours: list[str], theirs: list[str]
) -> None:
    make_launch(tmp_path)
    ovmf = str(tmp_path / "firmware")
    values = {"--kernel": str(tmp_path / "kernel"), "--initrd": str(tmp_path / "initrd"), "--append": "a b"}
    hashes = [f"--{name}-hash={sha256_file(tmp_path / name)}" for name in ("kernel", "initrd")]
    dumps = "sev" not in ours
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    assert THEIRS
    for kernel in ([], ["--kernel"], ["--kernel", "--initrd", "--append"]):
        files = [word for name in kernel for word in (name, values[name])]
        argv = [THEIRS, "--ovmf", ovmf, *theirs, *files, *(["--dump-vmsa"] if dumps else [])]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path / "theirs")
        dump = ["--dump-vmsa", str(tmp_path / "ours")] if dumps else []
        assert measured(capsys, "--firmware", ovmf, *ours, *files, *dump) == done.stdout
        if len(kernel) == 3:  # who has only the hashes gets the same
            by_hash = [*hashes, "--cmdline", "a b"]
            assert measured(capsys, "--firmware", ovmf, *ours, *by_hash) == done.stdout
            by_hash[0] = f"--kernel-hash={'ab' * 32}"
            assert measured(capsys, "--firmware", ovmf, *ours, *by_hash) != done.stdout  # control
    found, wanted = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("ours", "theirs")
    )
    assert found == wanted and len(found) == (int(ours[ours.index("--vcpus") + 1]) if dumps else 0)


@pytest.mark.skipif(THEIRS is None, reason="sev-snp-measure is not installed")
def test_the_hash_of_a_firmware_equals_that_of_sev_snp_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_launch(tmp_path)
    ovmf = str(tmp_path / "firmware")
    assert THEIRS
    argv = [THEIRS, "--mode", "snp:ovmf-hash", "--ovmf", ovmf]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    own = measured(capsys, "--firmware", ovmf, "--mode", "firmware-hash")
    assert own == done.stdout
    whole = measured(capsys, "--firmware", ovmf, "--vcpus", "2")
    assert main(["--firmware", ovmf, "--vcpus", "2", "--firmware-hash", own.strip()]) == 0
    shown = capsys.readouterr()
    assert shown.out == whole and "hash is known" in shown.err
    other = ["--firmware-hash", "cd" * 48]
    argv = [
        THEIRS,
        "--mode",
        "snp",
        "--ovmf",
        ovmf,
        "--vcpus",
        "2",
        "--vcpu-type",
        "EPYC-v4",
        "--snp-ovmf-hash",
        other[1],
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert measured(capsys, "--firmware", ovmf, "--vcpus", "2", *other) == done.stdout != whole


def test_a_host_kernel_decides_on_the_features(config: VmConfig, capsys: pytest.CaptureFixture[str]) -> None:
    found = [measured(capsys, "--vm-config", config.source, *words) for words in (
        [], ["--host-kernel", "6.9"], ["--host-kernel", "secure-tsc"], ["--guest-features", "0x201"],
        ["--host-kernel", "6.6"], ["--host-kernel", "before-6.6"], ["--host-kernel", "6.6", "--guest-features", "0x1"],
    )]  # fmt: skip
    assert found[0] == found[1] and found[2] == found[3] and found[5] == found[6]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    "words",
    [
        ["--vm-config", "/nowhere"],
        ["--firmware", "/nowhere"],
        ["--firmware", "{firmware}", "--kernel", "/nowhere"],
        ["--firmware", "{firmware}", "--initrd", "{kernel}"],
        ["--firmware", "{firmware}", "--append", "x"],
        ["--firmware", "{firmware}", "--initrd-hash", "ab" * 32],
        ["--firmware", "{firmware}", "--kernel-hash", "ab"],
        ["--firmware", "{firmware}", "--kernel-hash", "ab" * 32, "--kernel", "{kernel}"],
        ["--firmware", "{firmware}", "--firmware-hash", "xy" * 48],
        ["--firmware", "{firmware}", "--mode", "sev", "--vcpus", "2"],
        ["--firmware", "{firmware}", "--mode", "seves", "--firmware-hash", "ab" * 48],
        ["--firmware", "{firmware}", "--mode", "firmware-hash", "--vcpus", "2"],
        ["--firmware", "{firmware}", "--dump-vmsa", "/nowhere"],
        ["--vm-config", "{config}", "--mode", "sev"],
        ["--vm-config", "{config}", "--kernel-hash", "ab" * 32],
        ["--firmware", "{kernel}"],
        ["--firmware", "{firmware}", "--vcpu-model", "host"],
        ["--firmware", "{firmware}", "--vcpus", "0"],
        ["--firmware", "{firmware}", "--vcpus", "4097"],
        ["--firmware", "{firmware}", "--guest-features", "0x2"],
        ["--firmware", "{firmware}", "--host-kernel", "7"],
        ["--firmware", "{firmware}", "--svsm", "{kernel}"],
        ["--firmware", "{firmware}", "--svsm", "{kernel}", "--vars-size", "4096"],
        ["--firmware", "{firmware}", "--svsm", "{kernel}", "--vars-size", "4096", "--vmm", "ec2"],
        ["--vm-config", "{config}", "--kernel", "{kernel}"],
        ["--vm-config", "{config}", "--firmware", "{firmware}"],
        ["--firmware", "{firmware}", "--vcpus", "1;2"],
        ["--firmware", "{firmware}", "--vcpus", "²"],
        ["--firmware", "{firmware}", "--guest-features", "x"],
        ["--firmware", "{firmware}", "--vmm", "xen"],
        ["--firmware", "{firmware}", "--svsm", "{kernel}", "--vars-size", "1"],
        [],
    ],
)
def test_wrong_input_gives_one_line_and_exit_code_64(
    config: VmConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    names = {"firmware": tmp_path / "firmware", "kernel": tmp_path / "kernel", "config": config.source}
    try:
        code: object = main([word.format(**names) for word in words])
    except SystemExit as ended:
        code = ended.code
    shown = capsys.readouterr()
    assert code == 64 and shown.out == "" and shown.err and "Traceback" not in shown.err


@pytest.mark.parametrize("mode", ["snp", "seves"])
def test_each_mode_refuses_a_number_of_vcpus_that_no_guest_has(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_launch(tmp_path)
    words = ["--firmware", str(tmp_path / "firmware"), "--mode", mode, "--vcpus"]
    assert len(measured(capsys, *words, "1,4096").splitlines()) == 2  # control
    for counts, wrong in (("0", 0), ("4097", 4097), ("1,5000", 5000)):
        assert main([*words, counts]) == 64
        shown = capsys.readouterr()
        assert (shown.out, shown.err) == ("", f"vcpus: found {wrong}, expected 1 to 4096\n")


def test_a_large_initramfs_is_not_loaded_into_memory(tmp_path: Path) -> None:
    make_launch(tmp_path)
    with (tmp_path / "initrd").open("wb") as stream:
        stream.truncate(200 << 20)
    script = (
        "import re, sys\n"
        "from sevsnp.commands.measure import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        # Not getrusage: its maximum is that of the process which started this one, too.
        "print(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1])\n"
    )
    words = [f"--{name}={tmp_path / name}" for name in ("firmware", "kernel", "initrd")]
    argv = [sys.executable, "-c", script, *words, "--append", "x"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    digest, kilobytes = done.stdout.split()
    assert len(digest) == 96 and int(kilobytes) < 40 << 10


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 34
