# SPDX-License-Identifier: Apache-2.0
"""The status of this machine's secure processor, as the firmware answers it through /dev/sev.

Sources: AMD 56860, SNP_PLATFORM_STATUS; Linux include/uapi/linux/psp-sev.h (the ioctl of /dev/sev). Integers are
little-endian.
"""

import ctypes
import errno
import fcntl
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from sevsnp.attestation.report import decode_tcb
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb
from sevsnp.vm_config.processor import Cpuid, product_of

DEVICE = Path("/dev/sev")
CPUINFO = Path("/proc/cpuinfo")

STATUS_SIZE = 32
_STATUS = struct.Struct("<BBBBIII8s8s")
_COMMAND = struct.Struct("<IQI")  # struct sev_issue_cmd: command, address of the answer, status of the firmware
_SNP_PLATFORM_STATUS = 9
_ISSUE = 3 << 30 | _COMMAND.size << 16 | ord("S") << 8  # _IOWR('S', 0, struct sev_issue_cmd)
STATES = {0: "uninitialized", 1: "initialized"}
_FLAGS = (
    "mask_chip_id", "mask_chip_key", "vlek_en", "feature_info", "rapl_dis", "ciphertext_hiding_cap",
    "ciphertext_hiding_en",
)  # fmt: skip
_FIRST_KERNEL = "expected Linux 6.11 or newer with SEV-SNP on: docs/hardware.md"


@dataclass(frozen=True)
class PlatformStatus:
    """SNP_PLATFORM_STATUS. ``flags`` have their names in Linux; a flag without a name has its position (bit_7)."""

    product: Product
    api: str
    build: int
    state: str
    rmp_initialized: bool
    alias_check_complete: bool
    flags: dict[str, bool]
    guests: int
    current_tcb: Tcb
    reported_tcb: Tcb


def parse_status(data: bytes, product: Product) -> PlatformStatus:
    """Read an answer of 32 bytes; the TCB versions have the layout of ``product``.

    Of byte 3, bit 0 says that the RMP is initialized. Bit 1 is another answer (the check for aliased memory is done),
    and further bits may come. Raises :class:`UserError` for another length, and for bytes of a TCB
    version that must be zero and are not.
    """
    if len(data) != STATUS_SIZE:
        raise UserError(f"platform status: found {len(data)} bytes, expected {STATUS_SIZE}")
    major, minor, state, rmp, build, flags, guests, current, reported = _STATUS.unpack(data)
    later = {f"bit_{bit}": True for bit in range(len(_FLAGS), 32) if flags >> bit & 1}
    return PlatformStatus(
        product=product,
        api=f"{major}.{minor}",
        build=build,
        state=STATES.get(state, f"unknown ({state})"),
        rmp_initialized=bool(rmp & 1),
        alias_check_complete=bool(rmp >> 1 & 1),
        flags={**{name: bool(flags >> bit & 1) for bit, name in enumerate(_FLAGS)}, **later},
        guests=guests,
        current_tcb=decode_tcb(current, product),
        reported_tcb=decode_tcb(reported, product),
    )


def read_status(device: Path = DEVICE) -> bytes:
    """The answer (32 bytes) of this machine's secure processor. Raises :class:`UserError` if there is no answer."""
    answer = ctypes.create_string_buffer(STATUS_SIZE)
    command = bytearray(_COMMAND.pack(_SNP_PLATFORM_STATUS, ctypes.addressof(answer), 0))
    try:
        with device.open("rb+", buffering=0) as stream:
            fcntl.ioctl(stream, _ISSUE, command, True)
    except FileNotFoundError:
        raise UserError(
            f"{device}: no such device: this machine has no AMD secure processor for SEV, or no driver for it (ccp)",
            "run it on the SNP host itself, not in a guest",
        ) from None
    except PermissionError:
        raise UserError(
            f"{device}: this user may not open it", "run it as root, or as a user who may open it"
        ) from None
    except OSError as error:
        status = _COMMAND.unpack(command)[2]
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ENODEV):
            why = f"{device}: no SNP_PLATFORM_STATUS: {error.strerror}"
            raise UserError(why, f"SEV-SNP is off, or the kernel too old: {_FIRST_KERNEL}") from None
        raise UserError(f"{device}: {error.strerror}, firmware status {status:#x}") from None
    return answer.raw


def host_product(cpuinfo: Path = CPUINFO) -> Product:
    """This machine's product. Raises :class:`UserError` as :func:`product_in` does."""
    return product_in(cpuinfo.read_text(errors="replace"))


def product_in(text: str) -> Product:
    """The product by family and model in ``text``, the text of /proc/cpuinfo.

    Raises :class:`UserError` for a processor that has no SEV-SNP.
    """
    numbers = [
        re.search(rf"^{name}\s*:\s*(\d{{1,9}})$", text, re.MULTILINE) for name in ("cpu family", "model", "stepping")
    ]
    family, model, stepping = (int(number[1]) if number else 0 for number in numbers)
    return product_of(Cpuid(family, model, stepping))
