# SPDX-License-Identifier: Apache-2.0
"""Compute the SNP launch digest that the secure processor computes over the memory that QEMU loads.

Sources: AMD 56860 §8.17.2 (PAGE_INFO); QEMU target/i386/sev.c (kernel-hashes table, order of sections); for EC2, GCE
and an SVSM beside an OVMF: sev-snp-measure 0.0.13. The part of each vCPU is in sevsnp.measurement.vmsa. Files are read
in pieces and never held in memory as a whole.
"""

import hashlib
import io
import struct
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sevsnp.errors import UserError
from sevsnp.measurement.ovmf import FOUR_GIB, PAGE, Section, SectionKind, check_size, read_firmware, read_svsm
from sevsnp.measurement.vmsa import (
    BSP_EIP,
    DEFAULT_KERNEL,
    HOST_KERNELS,
    HostKernel,
    Vmm,
    svsm_vmsa,
    vcpu_signature,
    vmsa,
)
from sevsnp.system.regular import open_regular
from sevsnp.vm_config.cmdline import read_bytes
from sevsnp.vm_config.config import File, Launch, making

DIGEST_SIZE = 48
TABLE_SIZE = 176  # 168 bytes, padded to a multiple of 16 as QEMU does
MAX_VCPUS = 4096

_HEADER = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le
_CMDLINE = uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a").bytes_le
_INITRD = uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d").bytes_le
_KERNEL = uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b").bytes_le

NO_INITRD = hashlib.sha256(b"").digest()


@dataclass(frozen=True)
class KernelHashes:
    """SHA-256 (32 bytes each) of kernel, initrd (of no bytes without an initrd) and cmdline with its final NUL."""

    kernel: bytes
    initrd: bytes
    cmdline: bytes

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if len(value) != 32:
                raise ValueError(f"{name}: {len(value)} bytes, expected a SHA-256 of 32")

    @classmethod
    def of(cls, launch: Launch) -> "KernelHashes":
        """The hashes of a launch's files, each compared with the SHA-256 in the VM config as it is read."""
        kernel = _hash_file(launch, launch.kernel, "kernel")
        initrd = _hash_file(launch, launch.initrd, "initrd")
        return cls(kernel, initrd, hash_cmdline(checked_cmdline(launch)))

    def table(self) -> bytes:
        """QEMU's PaddedSevHashTable, 176 bytes, which ``kernel-hashes=on`` puts into guest memory."""
        entries = b"".join(
            struct.pack("<16sH32s", guid, 50, digest)
            for guid, digest in ((_CMDLINE, self.cmdline), (_INITRD, self.initrd), (_KERNEL, self.kernel))
        )
        return (struct.pack("<16sH", _HEADER, 18 + len(entries)) + entries).ljust(TABLE_SIZE, b"\0")

    def page(self, offset: int) -> bytes:
        """The 4096-byte page with the table at ``offset`` and zeros around it."""
        if not 0 <= offset <= PAGE - TABLE_SIZE:
            raise UserError(f"kernel-hashes table at {offset:#x} of its page: no room for {TABLE_SIZE} bytes")
        return (bytes(offset) + self.table()).ljust(PAGE, b"\0")


def hash_cmdline(cmdline: bytes) -> bytes:
    """SHA-256 of a command line with its NUL, as QEMU puts it into the table."""
    return hashlib.sha256(cmdline + b"\0").digest()


def checked_cmdline(launch: Launch) -> bytes:
    """The cmdline file's bytes, which are the command line itself: printable ASCII, no newline, at most MAX_LENGTH."""
    file = launch.cmdline
    cmdline = read_bytes(file.path)
    _compare(launch, file, "cmdline", hashlib.sha256(cmdline).hexdigest())
    for position, byte in enumerate(cmdline):
        if not 0x20 <= byte < 0x7F:
            raise UserError(
                f"{file.path}: byte {byte:#04x} at {position}: expected one line of printable ASCII without its newline"
            )
    return cmdline


def launch_digest_of(launch: Launch) -> bytes:
    """The launch digest (48 bytes) of a VM config's files. Raises :class:`UserError` if a file has changed."""
    return launch_digests_of(launch, [launch.vcpus])[launch.vcpus]


def launch_digests_of(launch: Launch, vcpus: Iterable[int], machine: "Machine | None" = None) -> dict[int, bytes]:
    """The launch digests of a VM config's files by number of vCPUs; ``machine`` replaces the config's own."""
    hashes = KernelHashes.of(launch)
    machine = machine or Machine(launch.vcpu_model, launch.guest_features)
    digests, sha256 = measure_firmware(launch.firmware.path, hashes, vcpus, machine)
    # The firmware is read once for measuring and comparing, so the measured bytes are the compared bytes.
    _compare(launch, launch.firmware, "firmware", sha256)
    return digests


@dataclass(frozen=True)
class Machine:
    """The values that decide each vCPU's initial state. ``guest_features`` is SEV_FEATURES of the VMSA (64 bits)."""

    vcpu_model: str
    guest_features: int
    kernel: HostKernel = HOST_KERNELS[DEFAULT_KERNEL]
    vmm: Vmm = Vmm.QEMU

    def __post_init__(self) -> None:
        if not self.guest_features & 1 or self.guest_features >> 64:
            raise UserError(f"guest_features: found {self.guest_features:#x}, expected 64 bits with bit 0 (SNP active)")

    @property
    def signature(self) -> int:
        # Only QEMU shows the guest a signature, so other monitors need no known model.
        return vcpu_signature(self.vcpu_model) if self.vmm is Vmm.QEMU else 0


def measure_firmware(
    path: Path, hashes: KernelHashes | None, vcpus: Iterable[int], machine: Machine, loaded: bytes | None = None
) -> tuple[dict[int, bytes], str]:
    """The launch digests (48 bytes) of a firmware file by number of vCPUs, and the file's SHA-256 (64 hex digits).

    ``loaded`` is the digest of :func:`firmware_digest`, of another firmware with the same tables as the file's.
    """
    try:
        with open_regular(path) as stream:
            return _digests(stream, stream.seek(0, io.SEEK_END), str(path), hashes, vcpus, machine, loaded)
    except OSError as error:
        raise _unreadable(path, "firmware", error) from error


def firmware_digest(path: Path) -> bytes:
    """The launch digest (48 bytes) after the firmware alone: with it, others compute digests without its content."""
    try:
        with open_regular(path) as stream:
            return loaded_digest(stream, stream.seek(0, io.SEEK_END), str(path))
    except OSError as error:
        raise _unreadable(path, "firmware", error) from error


def loaded_digest(firmware: BinaryIO, size: int, name: str = "firmware image") -> bytes:
    """Like :func:`firmware_digest`, of ``size`` bytes of firmware in a seekable stream."""
    context = _Context()
    info = read_firmware(firmware, size, name, kernel_hashes=False)
    for address, content in _pages(firmware, info.address, info.size, name):
        context.data(_NORMAL, address, content)
    return context.digest


def measure_svsm(firmware: Path, svsm: Path, variables: int, vcpus: Iterable[int], vcpu_model: str) -> dict[int, bytes]:
    """The launch digests, by number of vCPUs, of an SVSM that is loaded ``variables`` bytes below an OVMF."""
    context = _Context()
    try:
        with open_regular(firmware) as stream, open_regular(svsm) as other:
            size = stream.seek(0, io.SEEK_END)
            check_size(size, str(firmware))
            end = FOUR_GIB - size - variables
            info = read_svsm(other, other.seek(0, io.SEEK_END), end, str(svsm))
            for address, content in _pages(stream, FOUR_GIB - size, size, str(firmware)):
                context.data(_NORMAL, address, content)
            for address, content in _pages(other, info.address, info.size, str(svsm)):
                context.data(_NORMAL, address, content)
    except OSError as error:
        raise UserError(f"{firmware} and {svsm}: cannot be read: {error.strerror}") from error
    _add_sections(context, info.sections, None)
    page = svsm_vmsa(info.eip, vcpu_signature(vcpu_model))
    return _with_vcpus(context, vcpus, page, page)


def svsm_save_area(firmware: Path, svsm: Path, variables: int, vcpu_model: str) -> tuple[bytes, bytes]:
    """The VMSA (4096 bytes) of a guest that starts in an SVSM: that of the first vCPU, and the same for the others."""
    try:
        size = firmware.stat().st_size
        with open_regular(svsm) as other:
            end = FOUR_GIB - size - variables
            info = read_svsm(other, other.seek(0, io.SEEK_END), end, str(svsm))
    except OSError as error:
        raise UserError(f"{firmware} and {svsm}: cannot be read: {error.strerror}") from error
    page = svsm_vmsa(info.eip, vcpu_signature(vcpu_model))
    return page, page


def launch_digest(
    firmware: BinaryIO,
    size: int,
    hashes: KernelHashes | bytes | None,
    *,
    vcpus: int,
    vcpu_model: str,
    guest_features: int,
    name: str = "firmware image",
    loaded: bytes | None = None,
) -> bytes:
    """The launch digest, 48 bytes, of ``size`` bytes of firmware in a seekable stream.

    ``hashes`` are the kernel hashes, or the whole 4096-byte page of guest memory that holds them, or None for a guest
    that boots without ``kernel-hashes=on``. ``guest_features`` is SEV_FEATURES of the VMSA (64 bits).
    ``name`` names the firmware in errors. ``loaded`` is its :func:`loaded_digest`, where that is known already.
    """
    return _digests(firmware, size, name, hashes, [vcpus], Machine(vcpu_model, guest_features), loaded)[0][vcpus]


def _digests(
    stream: BinaryIO,
    size: int,
    name: str,
    hashes: KernelHashes | bytes | None,
    vcpus: Iterable[int],
    machine: Machine,
    loaded: bytes | None = None,
) -> tuple[dict[int, bytes], str]:
    """The launch digests, and the SHA-256 (64 hex digits) of the firmware that they cover."""
    signature = machine.signature
    info = read_firmware(stream, size, name, kernel_hashes=hashes is not None)
    page = hashes.page(info.hash_page_offset) if isinstance(hashes, KernelHashes) else hashes
    if page is not None and len(page) != PAGE:
        raise UserError(f"kernel-hashes page: found {len(page)} bytes, expected {PAGE}")
    if page is not None and info.hash_table_size < TABLE_SIZE:
        raise UserError(f"{name}: room for {info.hash_table_size} bytes of kernel hashes, expected {TABLE_SIZE}")
    context = _Context()
    sha256 = hashlib.sha256()
    for address, content in _pages(stream, info.address, info.size, name):
        sha256.update(content)
        if loaded is None:
            context.data(_NORMAL, address, content)
    if loaded is not None:
        context.digest = loaded
    _add_sections(context, info.sections, page, machine.vmm)
    first, others = (
        vmsa(eip, signature, machine.guest_features, machine.kernel, machine.vmm) for eip in (BSP_EIP, info.reset_eip)
    )
    return _with_vcpus(context, vcpus, first, others), sha256.hexdigest()


def _with_vcpus(context: "_Context", vcpus: Iterable[int], first: bytes, others: bytes) -> dict[int, bytes]:
    """The digests with the VMSAs for each number of ``vcpus``; a larger number continues from the smaller one."""
    found = {}
    wanted = sorted(set(vcpus))
    for number in wanted:
        if not 1 <= number <= MAX_VCPUS:
            raise UserError(f"vcpus: found {number}, expected 1 to {MAX_VCPUS}")
    measured = hashlib.sha384(first).digest()
    for number in range(1, max(wanted, default=0) + 1):
        context.add(_VMSA, _VMSA_ADDRESS, measured)
        if number == 1:
            measured = hashlib.sha384(others).digest()
        if number in wanted:
            found[number] = context.digest
    return found


def _pages(stream: BinaryIO, start: int, size: int, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield each page of a file that is loaded at ``start``, with its address."""
    stream.seek(0)
    for offset in range(0, size, PAGE):
        content = stream.read(PAGE)
        if len(content) != PAGE:
            raise UserError(f"{name}: ends after {offset + len(content)} bytes, expected {size}")
        yield start + offset, content


def _add_sections(
    context: "_Context", sections: tuple[Section, ...], hash_page: bytes | None, vmm: Vmm = Vmm.QEMU
) -> None:
    if vmm is Vmm.EC2:  # EC2 adds the CPUID page after all other pages
        sections = tuple(sorted(sections, key=lambda section: section.kind is SectionKind.CPUID))
    for section in sections:
        for address in range(section.address, section.address + section.size, PAGE):
            match section.kind:
                case SectionKind.SNP_KERNEL_HASHES if hash_page is not None:
                    context.data(_NORMAL, address, hash_page)
                case SectionKind.SNP_SECRETS:
                    context.add(_SECRETS, address)
                case SectionKind.CPUID:
                    context.add(_CPUID, address)
                case SectionKind.SNP_SEC_MEM if vmm is Vmm.GCE:
                    context.add(_UNMEASURED, address)
                case _:
                    context.add(_ZERO, address)


_NORMAL, _VMSA, _ZERO, _UNMEASURED, _SECRETS, _CPUID = range(1, 7)  # page types, AMD 56860 SNP_LAUNCH_UPDATE
_NO_CONTENT = bytes(DIGEST_SIZE)
_VMSA_ADDRESS = 0xFFFFFFFFF000  # the address that the secure processor records for every VMSA page
_PAGE_INFO = struct.Struct("<48s48sHBBBBBBQ")


class _Context:
    """The running digest: each page makes a new digest from the old one and the page's PAGE_INFO (0x70 bytes)."""

    def __init__(self) -> None:
        self.digest = _NO_CONTENT

    def add(self, kind: int, address: int, content: bytes = _NO_CONTENT) -> None:
        info = _PAGE_INFO.pack(self.digest, content, _PAGE_INFO.size, kind, 0, 0, 0, 0, 0, address)
        self.digest = hashlib.sha384(info).digest()

    def data(self, kind: int, address: int, page: bytes) -> None:
        self.add(kind, address, hashlib.sha384(page).digest())


def _hash_file(launch: Launch, file: File, what: str) -> bytes:
    digest = hash_file(file.path, what)
    _compare(launch, file, what, digest.hex())
    return digest


def hash_file(path: Path, what: str) -> bytes:
    """SHA-256 (32 bytes) of the file ``path``; errors call the file ``what``."""
    try:
        with open_regular(path) as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise _unreadable(path, what, error) from error


def _compare(launch: Launch, file: File, what: str, found: str) -> None:
    if found != file.sha256:
        raise UserError(
            f"{file.path}: {what}: found SHA-256 {found}, the VM config says {file.sha256}",
            f"the file changed after the VM config was made; make both again: {making(file.path, launch.workflow)}",
        )


def _unreadable(path: Path, what: str, error: OSError) -> UserError:
    return UserError(f"{path}: cannot read the {what}: {error.strerror}")
