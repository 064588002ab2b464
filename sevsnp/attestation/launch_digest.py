"""The SNP launch digest that the secure processor computes over what QEMU loads.

Sources: AMD 56860 §8.17.2 (PAGE_INFO); QEMU target/i386/sev.c (kernel-hashes table, order of sections). What a vCPU
starts with is in vmsa.py.
"""

import hashlib
import io
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sevsnp.attestation.ovmf import PAGE, Ovmf, SectionKind, read_firmware
from sevsnp.attestation.vmsa import BSP_EIP, DEFAULT_LAYOUT, find_layout, vcpu_signature, vmsa
from sevsnp.errors import UserError
from sevsnp.vm.cmdline import MAX_LENGTH
from sevsnp.vm.config import File, Launch

DIGEST_SIZE = 48
TABLE_SIZE = 176  # 168 bytes, padded to a multiple of 16 as QEMU does
MAX_VCPUS = 4096
_PIECE = 1 << 20

_HEADER = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le
_CMDLINE = uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a").bytes_le
_INITRD = uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d").bytes_le
_KERNEL = uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b").bytes_le

NO_INITRD = hashlib.sha256(b"").digest()


@dataclass(frozen=True)
class KernelHashes:
    """SHA-256 (32 bytes each) of kernel, initrd (of nothing where there is none) and cmdline with its final NUL."""

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
        kernel = _hash_file(launch.kernel, "kernel")
        initrd = _hash_file(launch.initrd, "initrd")
        return cls(kernel, initrd, hash_cmdline(read_cmdline(launch.cmdline)))

    def table(self) -> bytes:
        """QEMU's PaddedSevHashTable, 176 bytes: what ``kernel-hashes=on`` puts into guest memory."""
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
    """SHA-256 of a command line as QEMU puts it into the table, with the NUL."""
    return hashlib.sha256(cmdline + b"\0").digest()


def read_cmdline(file: File) -> bytes:
    """A cmdline file's bytes, which are the command line itself: printable ASCII, no newline, at most MAX_LENGTH."""
    try:
        cmdline = file.path.read_bytes() if file.path.stat().st_size <= MAX_LENGTH else None
    except OSError as error:
        raise _unreadable(file.path, "cmdline", error) from error
    if cmdline is None:
        raise UserError(f"{file.path}: more than {MAX_LENGTH} bytes: the kernel would cut the command line off")
    _compare(file, "cmdline", hashlib.sha256(cmdline).hexdigest())
    for position, byte in enumerate(cmdline):
        if not 0x20 <= byte < 0x7F:
            raise UserError(
                f"{file.path}: byte {byte:#04x} at {position}: expected one line of printable ASCII without its newline"
            )
    return cmdline


def launch_digest_of(launch: Launch) -> bytes:
    """The launch digest (48 bytes) of a VM config's files. Raises :class:`UserError` where a file is another."""
    hashes = KernelHashes.of(launch)
    path = launch.firmware.path
    try:
        with path.open("rb") as stream:
            digest, sha256 = _digest(
                stream, stream.seek(0, io.SEEK_END), str(path), hashes,
                [launch.vcpus], vcpu_signature(launch.vcpu_model), launch.guest_features, launch.vmsa,
            )  # fmt: skip
    except OSError as error:
        raise _unreadable(path, "firmware", error) from error
    # The bytes measured are the bytes compared: the firmware is read once for both.
    _compare(launch.firmware, "firmware", sha256)
    return digest[launch.vcpus]


def launch_digest(
    firmware: BinaryIO,
    size: int,
    hashes: KernelHashes | bytes,
    *,
    vcpus: int,
    vcpu_model: str,
    guest_features: int,
    name: str = "firmware image",
    layout: str = DEFAULT_LAYOUT,
) -> bytes:
    """The launch digest, 48 bytes, of ``size`` bytes of firmware in a seekable stream.

    ``hashes`` are the kernel hashes, or the whole 4096-byte page that holds them as it stands in guest memory.
    ``guest_features`` is SEV_FEATURES of the VMSA (64 bits). ``name`` names the firmware in errors, ``layout`` the
    host's kind of VMSA.
    """
    signature = vcpu_signature(vcpu_model)
    return _digest(firmware, size, name, hashes, [vcpus], signature, guest_features, layout)[0][vcpus]


def launch_digests(
    firmware: BinaryIO,
    size: int,
    hashes: KernelHashes | None,
    *,
    vcpus: Sequence[int],
    signature: int,
    guest_features: int,
    name: str,
    layout: str = DEFAULT_LAYOUT,
) -> dict[int, bytes]:
    """As :func:`launch_digest`, for several numbers of vCPUs at once and a CPUID signature (vmsa.py).

    ``hashes`` is None for a guest whose firmware finds its kernel by itself; nothing of that kernel is measured then.
    """
    return _digest(firmware, size, name, hashes, vcpus, signature, guest_features, layout)[0]


def _digest(
    stream: BinaryIO,
    size: int,
    name: str,
    hashes: KernelHashes | bytes | None,
    vcpus: Sequence[int],
    signature: int,
    guest_features: int,
    layout: str,
) -> tuple[dict[int, bytes], str]:
    """The launch digests, and the SHA-256 of the firmware that went into them (64 hex digits)."""
    for number in vcpus:
        if not 1 <= number <= MAX_VCPUS:
            raise UserError(f"vcpus: found {number}, expected 1 to {MAX_VCPUS}")
    if not guest_features & 1 or guest_features >> 64:
        raise UserError(f"guest_features: found {guest_features:#x}, expected 64 bits with bit 0 (SNP active)")
    info = read_firmware(stream, size, name, kernel_hashes=hashes is not None)
    page = hashes.page(info.hash_page_offset) if isinstance(hashes, KernelHashes) else hashes
    if page is not None and len(page) != PAGE:
        raise UserError(f"kernel-hashes page: found {len(page)} bytes, expected {PAGE}")
    if page is not None and info.hash_table_size < TABLE_SIZE:
        raise UserError(f"{name}: room for {info.hash_table_size} bytes of kernel hashes, expected {TABLE_SIZE}")
    context = _Context()
    sha256 = hashlib.sha256()
    for address, content in _pages(stream, info, name):
        sha256.update(content)
        context.data(_NORMAL, address, content)
    _add_sections(context, info, page, cpuid_last=find_layout(layout).cpuid_last)
    first, other = (
        hashlib.sha384(vmsa(eip, signature, guest_features, layout)).digest() for eip in (BSP_EIP, info.reset_eip)
    )
    digests: dict[int, bytes] = {}
    for number in range(max(vcpus)):
        context.add(_VMSA, _VMSA_ADDRESS, other if number else first)
        if number + 1 in vcpus:
            digests[number + 1] = context.digest
    return digests, sha256.hexdigest()


def _pages(stream: BinaryIO, info: Ovmf, name: str) -> Iterator[tuple[int, bytes]]:
    stream.seek(0)
    for offset in range(0, info.size, PAGE):
        content = stream.read(PAGE)
        if len(content) != PAGE:
            raise UserError(f"{name}: ends after {offset + len(content)} bytes, expected {info.size}")
        yield info.address + offset, content


def _add_sections(context: "_Context", info: Ovmf, hash_page: bytes | None, *, cpuid_last: bool) -> None:
    sections = info.sections
    if cpuid_last:
        sections = tuple(sorted(sections, key=lambda section: section.kind == SectionKind.CPUID))
    for section in sections:
        for address in range(section.address, section.address + section.size, PAGE):
            match section.kind:
                case SectionKind.SNP_KERNEL_HASHES if hash_page is not None:
                    context.data(_NORMAL, address, hash_page)
                case SectionKind.SNP_SECRETS:
                    context.add(_SECRETS, address)
                case SectionKind.CPUID:
                    context.add(_CPUID, address)
                case SectionKind.SNP_SEC_MEM | SectionKind.SVSM_CAA | SectionKind.SNP_KERNEL_HASHES:
                    context.add(_ZERO, address)


_NORMAL, _VMSA, _ZERO, _SECRETS, _CPUID = 1, 2, 3, 5, 6  # page types, AMD 56860 SNP_LAUNCH_UPDATE
_NO_CONTENT = bytes(DIGEST_SIZE)
_VMSA_ADDRESS = 0xFFFFFFFFF000  # what the secure processor records for every VMSA page
_PAGE_INFO = struct.Struct("<48s48sHBBBBBBQ")


class _Context:
    """The digest so far; each page makes a new one from it and its PAGE_INFO (0x70 bytes)."""

    def __init__(self) -> None:
        self.digest = _NO_CONTENT

    def add(self, kind: int, address: int, content: bytes = _NO_CONTENT) -> None:
        info = _PAGE_INFO.pack(self.digest, content, _PAGE_INFO.size, kind, 0, 0, 0, 0, 0, address)
        self.digest = hashlib.sha384(info).digest()

    def data(self, kind: int, address: int, page: bytes) -> None:
        self.add(kind, address, hashlib.sha384(page).digest())


def _hash_file(file: File, what: str) -> bytes:
    digest = hashlib.sha256()
    try:
        with file.path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise _unreadable(file.path, what, error) from error
    _compare(file, what, digest.hexdigest())
    return digest.digest()


def _compare(file: File, what: str, found: str) -> None:
    if found != file.sha256:
        raise UserError(
            f"{file.path}: {what}: found SHA-256 {found}, the VM config says {file.sha256}",
            "the file changed after the config was made: run the setup task again",
        )


def _unreadable(path: Path, what: str, error: OSError) -> UserError:
    return UserError(f"{path}: cannot read the {what}: {error.strerror}")
