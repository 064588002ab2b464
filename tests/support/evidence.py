# SPDX-License-Identifier: Apache-2.0
"""For the attestation tests: a synthetic firmware, VM configs, and one software secure processor for each session."""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import struct
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sevsnp.attestation.appraisal import Evidence, Expected
from sevsnp.emulation.psp import EmulatedPsp
from sevsnp.emulation.report_encoder import encode_report
from sevsnp.system.command import temporary_directory
from sevsnp.vm_config.config import Disk, File, Launch, Product, Reference, Tcb, VmConfig, render_vm_config

ROOT = Path(__file__).parents[2]
# Real reports and AMD's own certificates (tests/data/amd/README.md), and files that exist only beside a developer's
# checkout.
REAL_DATA = ROOT / "tests" / "data" / "amd"
VECTORS = ROOT.parent / "shared" / "vectors"
REAL_FIRMWARE = ROOT / "build/firmware/OVMF.fd"

needs_vectors = pytest.mark.skipif(not VECTORS.is_dir(), reason="../shared/vectors is absent")


def real_data(name: str) -> Path:
    """A file of real evidence by its name, such as ``milan-v2/vcek.der``; if it is absent, the test is skipped."""
    found = [path for path in (REAL_DATA / name, VECTORS / name) if path.exists()]
    if not found and not VECTORS.is_dir():
        pytest.skip("../shared/vectors is absent")
    return found[0]


SECTIONS = (
    (0x800000, 0x9000, 1), (0x80A000, 0x3000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3),
    (0x80F000, 0x1000, 4), (0x811000, 0x2000, 1), (0x810000, 0x1000, 0x10),
)  # fmt: skip
HASH_TABLE = "7255371f-3a3b-4b04-927b-1da6efa8d454"
RESET_BLOCK = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
METADATA = "dc886566-984a-4798-a75e-5585a7bf67cc"
FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
MEASUREMENT = hashlib.sha384(b"the expected guest").digest()
REPORT_DATA = hashlib.sha512(b"a fresh nonce and all host keys").digest()


def table_entry(guid: str, data: bytes) -> bytes:
    return data + struct.pack("<H16s", len(data) + 18, uuid.UUID(guid).bytes_le)


def firmware(
    size: int = 0x4000,
    sections: Sequence[tuple[int, int, int]] = SECTIONS,
    hash_area: tuple[int, int] = (0x810C00, 0x400),
    entries: Sequence[bytes] | None = None,
    volume: bool = False,
) -> bytes:
    """An image with AmdSev's tables and arbitrary content, only for the measurement."""
    metadata = struct.pack("<4sIII", b"ASEV", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    if entries is None:
        entries = (
            table_entry(METADATA, struct.pack("<I", 0x800)),
            table_entry(HASH_TABLE, struct.pack("<II", *hash_area)),
            table_entry(RESET_BLOCK, struct.pack("<I", 0x80B004)),
        )
    body = b"".join(entries)
    table = body + struct.pack("<H16s", len(body) + 18, uuid.UUID(FOOTER).bytes_le)
    image = bytearray(hashlib.shake_128(b"code").digest(size))
    if volume:
        # A volume with one file of one section: the gate reads it to its end and finds nothing to refuse.
        kind = uuid.UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3").bytes_le
        image[:56] = struct.pack("<16x16sQ4sIHHHBB", kind, size, b"_FVH", 0, 56, 0, 0, 0, 2)
        image[56:80] = struct.pack("<16sHBB3sB", b"f" * 16, 0, 5, 0, (size - 56).to_bytes(3, "little"), 0xF8)
        image[80:84] = (size - 80).to_bytes(3, "little") + b"\x10"
    image[size - 0x800 : size - 0x800 + len(metadata)] = metadata
    image[size - 32 - len(table) : size - 32] = table
    return bytes(image)


def write_file(path: Path, content: bytes) -> File:
    path.write_bytes(content)
    return File(path, hashlib.sha256(content).hexdigest())


def make_launch(directory: Path, **changes: Any) -> Launch:
    launch = Launch(
        workflow="verity",
        platform="emulated",
        product="Genoa",
        vcpus=1,
        vcpu_model="EPYC-v4",
        guest_policy=0x30000,
        guest_features=1,
        host_data=bytes(32),
        firmware=write_file(directory / "firmware", firmware(volume=True)),
        kernel=write_file(directory / "kernel", b"kernel" * 1000),
        initrd=write_file(directory / "initrd", b"initrd" * 1000),
        cmdline=write_file(directory / "cmdline", b"console=ttyS0 verity"),
        disks=(Disk("root", directory / "root.img", 4096, "0" * 64),),
    )
    return dataclasses.replace(launch, **changes)


_kept = contextlib.ExitStack()
atexit.register(_kept.close)


@functools.cache
def scratch() -> Path:
    """A directory that is removed with this process, even if it is killed, as xdist does with test processes."""
    return _kept.enter_context(temporary_directory("sevsnp-evidence."))


@functools.cache
def _psp(name: str, product: Product) -> EmulatedPsp:
    return EmulatedPsp.create(scratch() / f"{name}-{product}", product)


def psp(name: str = "first", product: Product = "Genoa") -> EmulatedPsp:
    """A secure processor by name. RSA-4096 keys take seconds, so most tests share one."""
    return _psp(name, product)


def root(name: str = "first", product: Product = "Genoa") -> Path:
    psp(name, product)
    return scratch() / f"{name}-{product}" / "ark.pem"


@functools.cache
def launch() -> Launch:
    return make_launch(scratch())


REFERENCE = Reference(
    launch_digest=MEASUREMENT,
    minimum_tcb=Tcb(7, 0, 15, 62),
    vmpl=0,
    guest_svn=0,
    family_id=bytes(16),
    image_id=bytes(16),
    platform_info_required=0x20,
    platform_info_forbidden=0x1,
)


def config(**changes: Any) -> VmConfig:
    """The VM config that the honest evidence satisfies, with ``changes`` to launch or reference fields, or policy."""
    fields = {field.name for field in dataclasses.fields(Reference)}
    reference = dataclasses.replace(REFERENCE, **{key: value for key, value in changes.items() if key in fields})
    other = {key: value for key, value in changes.items() if key not in {*fields, "report_data", "policy", "never"}}
    policy = {"profile": "default", **changes.get("policy", {})}
    return VmConfig(scratch() / "vm.toml", dataclasses.replace(launch(), **other), reference, policy)


def expected(**changes: Any) -> Expected:
    """What the honest evidence satisfies, with ``changes`` as for :func:`config`, or to report_data and never."""
    return Expected.of(config(**changes), changes.get("report_data", REPORT_DATA), never=changes.get("never"))


def evidence(**changes: Any) -> Evidence:
    """Honest emulated evidence; ``changes`` are fields of the report, which is signed with them."""
    honest = psp().fields(REPORT_DATA, launch=launch(), measurement=MEASUREMENT)
    report = psp().sign(encode_report(dataclasses.replace(honest, **changes)))
    return Evidence(report, psp().certificate_table())


def now() -> datetime:
    return datetime.now(UTC)


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_evidence(directory: Path) -> Path:
    """Files ``report`` and ``table`` of evidence that the emulated verifier accepts; the VM config that it fits."""
    (directory / "report").write_bytes(evidence().report)
    (directory / "table").write_bytes(psp().certificate_table())
    one = dataclasses.replace(config(), source=directory / "vm.toml")
    one.source.write_text(render_vm_config(one))
    return one.source
