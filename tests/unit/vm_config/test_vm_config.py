# SPDX-License-Identifier: Apache-2.0
"""The VM config: written, read back the same, and refused by name if it is wrong."""

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.vm_config.config import (
    Disk,
    File,
    Launch,
    Product,
    Reference,
    Stage,
    Tcb,
    VmConfig,
    parse_vm_config,
    read_vm_config,
    render_vm_config,
)

Document = dict[str, Any]
ALL_BITS = (1 << 64) - 1


def make(source: Path, product: Product = "Genoa", folder: str = "build") -> VmConfig:
    base = source.parent / folder
    launch = Launch(
        workflow="verity",
        platform="snp",
        product=product,
        vcpus=255,
        vcpu_model="EPYC-v4",
        guest_policy=ALL_BITS,
        guest_features=1,
        host_data=bytes(range(32)),
        firmware=File(base / "OVMF.amdsev.fd", "01" * 32),
        kernel=File(base / "vmlinuz", "23" * 32),
        initrd=File(base / "initramfs.cpio.zst", "45" * 32),
        cmdline=File(base / "cmdline", "67" * 32),
        disks=(Disk("root", base / "image", 1 << 50, "89" * 32), Disk("hash-tree", base / "tree", 1, "ab" * 32)),
    )
    reference = Reference(
        launch_digest=bytes(range(48)),
        minimum_tcb=Tcb(1, 0, 255, 72, fmc=9 if product == "Turin" else None),
        vmpl=3,
        guest_svn=(1 << 32) - 1,
        family_id=b"f" * 16,
        image_id=b"i" * 16,
        platform_info_required=0,
        platform_info_forbidden=ALL_BITS,
    )
    return VmConfig(source, launch, reference)


def plain(file: File) -> File:
    return file._replace(path=file.path.resolve())


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("folder", [".", "a b", "..", 'quo"te \\ back', "<it's> & so on", "ünïcode 📀", "{{ x }} {% y"])
def test_a_written_vm_config_is_read_back_the_same(product: Product, folder: str, tmp_path: Path) -> None:
    source = tmp_path.resolve() / "build" / "vm-config-verity.toml"
    source.parent.mkdir()
    config = make(source, product, folder)
    text = render_vm_config(config)
    source.write_text(text, encoding="utf-8")
    read = read_vm_config(source)
    # Paths come back absolute and without dots.
    assert read.reference == config.reference
    assert read.launch == dataclasses.replace(
        config.launch,
        firmware=plain(config.launch.firmware),
        kernel=plain(config.launch.kernel),
        initrd=plain(config.launch.initrd),
        cmdline=plain(config.launch.cmdline),
        disks=tuple(disk._replace(path=disk.path.resolve()) for disk in config.launch.disks),
    )
    assert render_vm_config(read) == text


def test_the_parts_of_a_stage_are_read_back(tmp_path: Path) -> None:
    config = make(tmp_path / "vm-config.toml")
    stage = Stage("01" * 32, "23" * 32, "45" * 32)
    config = dataclasses.replace(config, reference=dataclasses.replace(config.require_reference(), stage=stage))
    text = render_vm_config(config)
    assert parse_vm_config(tomllib.loads(text), config.source).reference == config.reference
    document = tomllib.loads(text)
    document["reference"]["acpi"] = True
    with pytest.raises(UserError, match=r"reference\.acpi: found True, expected false: the stage removes"):
        parse_vm_config(document, config.source)


def test_the_text_does_not_depend_on_where_the_project_is(tmp_path: Path) -> None:
    texts = set()
    for name in ("one", "two"):
        texts.add(render_vm_config(make(tmp_path / name / "vm-config.toml")))
    assert len(texts) == 1
    assert str(tmp_path) not in texts.pop()


def test_a_host_bundle_s_file_has_no_reference(tmp_path: Path) -> None:
    source = tmp_path / "launch.toml"
    bare = dataclasses.replace(make(source), reference=None)
    text = render_vm_config(bare)
    assert "reference" not in text
    source.write_text(text, encoding="utf-8")
    read = read_vm_config(source)
    assert read.reference is None
    with pytest.raises(UserError, match=r"launch\.toml: no \[reference\]"):
        read.require_reference()
    assert make(source).require_reference().vmpl == 3


@pytest.mark.parametrize("name", ["new\nline", "delete\x7f", "not-utf-8\udcff"])
def test_a_path_that_has_no_place_in_toml_is_refused_on_writing(name: str, tmp_path: Path) -> None:
    config = make(tmp_path / "vm-config.toml", folder=name)
    with pytest.raises(UserError, match="path"):
        render_vm_config(config)


def test_values_that_could_not_be_read_back_are_refused_on_writing(tmp_path: Path) -> None:
    config = make(tmp_path / "vm-config.toml")
    for launch, name in (
        (dataclasses.replace(config.launch, vcpus=0), "launch.vcpus"),
        (dataclasses.replace(config.launch, disks=()), "disk"),
        (dataclasses.replace(config.launch, vcpu_model="EPYC,-x"), "launch.vcpu_model"),
    ):
        with pytest.raises(UserError, match=name):
            render_vm_config(dataclasses.replace(config, launch=launch))


def put(path: str, value: Any) -> Callable[[Document], None]:
    """Set a field by its dotted path; numbers index arrays."""

    def change(document: Document) -> None:
        *parents, last = path.split(".")
        table: Any = document
        for parent in parents:
            table = table[int(parent)] if parent.isdigit() else table[parent]
        table[last] = value

    return change


def drop(path: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *parents, last = path.split(".")
        table: Any = document
        for parent in parents:
            table = table[int(parent)] if parent.isdigit() else table[parent]
        del table[last]

    return change


def put_fmc(document: Document) -> None:
    document["launch"]["product"] = "Milan"
    document["reference"]["minimum_tcb"]["fmc"] = 1


WRONG: list[tuple[Callable[[Document], None], str]] = [
    # unknown keys
    (put("extra", 1), "extra: found 1, expected no such key"),
    (put("launch.debug", True), "launch.debug: found True, expected no such key"),
    (put("files.shim", {}), "files.shim: found {}, expected no such key"),
    (put("files.kernel.size", 1), "files.kernel.size: found 1, expected no such key"),
    (put("disk.0.uuid", "x"), "disk[0].uuid: found 'x', expected no such key"),
    (put("reference.policy", 1), "reference.policy: found 1, expected no such key"),
    (put("reference.minimum_tcb.ucode", 1), "reference.minimum_tcb.ucode: found 1, expected no such key"),
    (put_fmc, "reference.minimum_tcb.fmc: found 1, expected no such key"),
    # missing ones
    (drop("format"), "format: found nothing"),
    (drop("launch"), "launch: found nothing, expected a table"),
    (drop("launch.platform"), "launch.platform: found nothing, expected snp or emulated"),
    (drop("files.initrd"), "files.initrd: found nothing, expected a table"),
    (drop("files.initrd.sha256"), "files.initrd.sha256: found nothing"),
    (drop("disk"), "disk: found nothing, expected an array of tables"),
    (drop("disk.1.size"), "disk[1].size: found nothing"),
    (drop("reference.launch_digest"), "reference.launch_digest: found nothing"),
    (put("launch.product", "Turin"), "reference.minimum_tcb.fmc: found nothing"),
    # wrong types
    (put("format", "1"), "format: found '1'"),
    (put("launch", 1), "launch: found 1, expected a table"),
    (put("launch.vcpus", True), "launch.vcpus: found True, expected an integer from 1 to 0xff"),
    (put("launch.vcpus", 1.0), "launch.vcpus: found 1.0"),
    (put("launch.vcpus", "1"), "launch.vcpus: found '1'"),
    (put("launch.workflow", 1), "launch.workflow: found 1, expected verity or luks"),
    (put("launch.host_data", 0), "launch.host_data: found 0, expected 64 lower-case hex digits (32 bytes)"),
    (put("reference.minimum_tcb", "none"), "reference.minimum_tcb: found 'none', expected a table, or any"),
    (put("reference.minimum_tcb", ""), "reference.minimum_tcb: found ''"),
    (put("reference.minimum_tcb", 0), "reference.minimum_tcb: found 0, expected a table"),
    (put("files.kernel", "vmlinuz"), "files.kernel: found 'vmlinuz', expected a table"),
    (put("files.kernel.path", 1), "files.kernel.path: found 1, expected a path"),
    (put("disk", {}), "disk: found {}, expected an array of tables"),
    (put("disk", [1]), "disk[0]: found 1, expected a table"),
    (put("reference", []), "reference: found [], expected a table"),
    # out of range
    (put("format", 2), "format: found 2, expected an integer from 1 to 0x1"),
    (put("launch.vcpus", 0), "launch.vcpus: found 0"),
    (put("launch.vcpus", 256), "launch.vcpus: found 256"),
    (put("launch.guest_policy", -1), "launch.guest_policy: found -1"),
    (put("launch.guest_policy", "0x1" + "0" * 16), "launch.guest_policy: found '0x10000000000000000'"),
    (put("launch.guest_policy", "0X1"), "launch.guest_policy: found '0X1'"),
    (put("launch.guest_features", "0x"), "launch.guest_features: found '0x'"),
    (put("launch.workflow", "verity "), "launch.workflow: found 'verity '"),
    (put("launch.workflow", "plain"), "launch.workflow: found 'plain'"),
    (put("launch.platform", "auto"), "launch.platform: found 'auto', expected snp or emulated"),
    (put("launch.product", "genoa"), "launch.product: found 'genoa', expected Milan, Genoa or Turin"),
    (put("launch.vcpu_model", "EPYC,+x"), "launch.vcpu_model: found 'EPYC,+x'"),
    (put("launch.vcpu_model", ""), "launch.vcpu_model: found ''"),
    (put("launch.host_data", "00" * 31), "launch.host_data: found"),
    (put("launch.host_data", "AA" * 32), "launch.host_data: found"),
    (put("files.kernel.path", ""), "files.kernel.path: found ''"),
    (put("files.kernel.path", "a\nb"), "files.kernel.path: found 'a\\nb'"),
    (put("files.kernel.sha256", "00" * 33), "files.kernel.sha256: found"),
    (put("files.kernel.sha256", "0g" * 32), "files.kernel.sha256: found"),
    (put("disk.0.role", "Root"), "disk[0].role: found 'Root'"),
    (put("disk.0.role", "a" * 21), "disk[0].role: found"),
    (put("disk.1.role", "root"), "disk[1].role: found 'root', expected each role once"),
    (put("disk.0.size", 0), "disk[0].size: found 0"),
    (put("reference.launch_digest", "00" * 32), "reference.launch_digest: found"),
    (put("reference.vmpl", 4), "reference.vmpl: found 4"),
    (put("reference.stage", {}), "reference.stage.code: found nothing"),
    (put("reference.stage", dict.fromkeys(("code", "tables", "kernel"), "0")), "reference.stage.code: found '0'"),
    (put("reference.stage", dict.fromkeys(("code", "tables", "kernel", "x"), "0" * 64)), "reference.stage.x: found"),
    (put("reference.guest_svn", 1 << 32), "reference.guest_svn: found 4294967296"),
    (put("reference.family_id", ""), "reference.family_id: found ''"),
    (put("reference.minimum_tcb.snp", 256), "reference.minimum_tcb.snp: found 256"),
    (put("reference.platform_info_required", -1), "reference.platform_info_required: found -1"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words.partition(", expected")[0] for _, words in WRONG])
def test_any_other_document_is_refused_by_name(change: Callable[[Document], None], words: str, tmp_path: Path) -> None:
    source = tmp_path / "vm-config.toml"
    document = tomllib.loads(render_vm_config(make(source)))
    parse_vm_config(document, source)  # the control: unchanged, it is accepted
    change(document)
    with pytest.raises(UserError) as refused:
        parse_vm_config(document, source)
    assert refused.value.message.startswith(f"{source}: {words}")


@pytest.mark.parametrize("product", ["Genoa", "Turin"])
@pytest.mark.parametrize("said", [None, "any", Tcb(0, 0, 1, 0)])
def test_a_minimum_tcb_the_word_any_or_no_minimum_is_read_back(said: Any, product: Product, tmp_path: Path) -> None:
    source = tmp_path / "vm-config.toml"
    if isinstance(said, Tcb) and product == "Turin":
        said = dataclasses.replace(said, fmc=0)
    config = make(source, product)
    reference = dataclasses.replace(config.require_reference(), minimum_tcb=said)
    source.write_text(render_vm_config(dataclasses.replace(config, reference=reference)))
    read = read_vm_config(source)
    assert read.require_reference().minimum_tcb == said
    assert read.policy == config.policy  # it stands behind it in the file


def test_a_minimum_of_zeros_counts_as_no_minimum(tmp_path: Path) -> None:
    document = tomllib.loads(render_vm_config(make(tmp_path / "vm-config.toml")))
    document["reference"]["minimum_tcb"] = {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}
    assert parse_vm_config(document, tmp_path / "vm-config.toml").require_reference().minimum_tcb is None


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "vm-config.toml"
    with pytest.raises(UserError, match="no such VM config") as refused:
        read_vm_config(source)
    assert "setup_verity" in refused.value.hint
    for content in (b"format = ", b"\xff\xfe", b"format = 1\nformat = 1\n"):
        source.write_bytes(content)
        with pytest.raises(UserError, match=r"vm-config\.toml: not a VM config"):
            read_vm_config(source)
    with pytest.raises(UserError, match="not a VM config"):
        read_vm_config(tmp_path)
