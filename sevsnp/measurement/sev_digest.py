# SPDX-License-Identifier: Apache-2.0
"""The launch digests of SEV and SEV-ES guests, and the initial save areas (VMSA) that a launch digest covers.

Source: AMD 55766 (LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA extend one SHA-256), in the order in which QEMU's
target/i386/sev.c loads: the firmware, the table of kernel hashes, each vCPU.
"""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.measurement.launch_digest import MAX_VCPUS, TABLE_SIZE, KernelHashes, Machine
from sevsnp.measurement.ovmf import PAGE, Ovmf, read_firmware
from sevsnp.measurement.vmsa import BSP_EIP, vmsa

NO_FEATURES = 0  # SEV_FEATURES of a guest of SEV-ES


def sev_digest(path: Path, hashes: KernelHashes | None) -> bytes:
    """The launch digest (32 bytes) of an SEV guest, which does not cover its vCPUs."""
    return _loaded(path, hashes)[0].digest()


def seves_digests(path: Path, hashes: KernelHashes | None, vcpus: Iterable[int], machine: Machine) -> dict[int, bytes]:
    """The launch digests (32 bytes) of an SEV-ES guest by number of vCPUs; the machine's features are not in them."""
    wanted, found = set(vcpus), {}
    for number in sorted(wanted):
        _check_count(number)
    digest, info = _loaded(path, hashes)
    first, others = save_areas(info, machine, NO_FEATURES)
    for number in range(1, max(wanted, default=0) + 1):
        digest.update(first if number == 1 else others)
        if number in wanted:
            found[number] = digest.copy().digest()
    return found


def save_areas(info: Ovmf, machine: Machine, features: int) -> tuple[bytes, bytes]:
    """The VMSAs (4096 bytes each) of the first vCPU and of every other one."""
    first, others = (
        vmsa(eip, machine.signature, features, machine.kernel, machine.vmm) for eip in (BSP_EIP, info.reset_eip)
    )
    return first, others


def read_info(path: Path, kernel_hashes: bool) -> Ovmf:
    """The tables of a firmware file. Raises :class:`UserError`."""
    try:
        with path.open("rb") as stream:
            return read_firmware(stream, stream.seek(0, io.SEEK_END), str(path), kernel_hashes=kernel_hashes)
    except OSError as error:
        raise UserError(f"{path}: cannot read the firmware: {error.strerror}") from error


def write_save_areas(directory: Path, first: bytes, others: bytes, vcpus: int) -> None:
    """Write ``vmsa0.bin`` … for this number of vCPUs into an existing directory. Raises OSError."""
    _check_count(vcpus)
    for number in range(vcpus):
        (directory / f"vmsa{number}.bin").write_bytes(others if number else first)


def _check_count(vcpus: int) -> None:
    if not 1 <= vcpus <= MAX_VCPUS:
        raise UserError(f"vcpus: found {vcpus}, expected 1 to {MAX_VCPUS}")


def _loaded(path: Path, hashes: KernelHashes | None) -> "tuple[hashlib._Hash, Ovmf]":
    """The running SHA-256 after the firmware and the table of kernel hashes, and the firmware's tables."""
    info = read_info(path, hashes is not None)
    if hashes and info.hash_table_size < TABLE_SIZE:
        raise UserError(f"{path}: room for {info.hash_table_size} bytes of kernel hashes, expected {TABLE_SIZE}")
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(16 * PAGE):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot read the firmware: {error.strerror}") from error
    digest.update(hashes.table() if hashes else b"")
    return digest, info
