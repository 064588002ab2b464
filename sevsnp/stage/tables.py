# SPDX-License-Identifier: Apache-2.0
"""The guest's ACPI tables: what a QEMU machine of type q35 has, and nothing that a host could choose but the vCPUs.

One function for each table (ACPI 6.5, chapter 5). They are complete for one address in memory, so the stage only copies
them, and the guest's tables in /sys/firmware/acpi/tables are these bytes.

There are no general-purpose events, no buttons, no keyboard controller, no slots, no sleep states except S5, and no
method: the DSDT has only constants. So a host has no way to make the guest's kernel run AML.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.stage import aml

# In usable memory of every machine from 256 MB on: above the firmware's own places (8 MiB and following), below the
# memory in which it allocates (from the top).
ADDRESS = 0x3000000
# The firmware's and QEMU's machine permits more; that many have been thought through.
MAX_VCPUS = 64
# A Local APIC structure has 8 bits for the APIC ID, and 255 means all; from there on, other structures are needed.
_MAX_APIC_ID = 254
_FACS_ALIGNMENT = 64
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_OEM, _OEM_TABLE, _CREATOR = b"SEVSNP", b"MEASURED", b"E2E "

# QEMU: hw/isa/lpc_ich9.c, hw/acpi/ich9.c. The firmware puts the power management block at port 0x600.
_PM_BASE = 0x600
_PM1_EVENT, _PM1_CONTROL, _PM_TIMER = (_PM_BASE, 4), (_PM_BASE + 4, 2), (_PM_BASE + 8, 4)
_SCI = 9
_RESET_PORT, _RESET_VALUE = 0xCF9, 0x0F
_RTC_CENTURY = 0x32
_LOCAL_APIC, _IO_APIC = 0xFEE00000, 0xFEC00000
# Between the most memory below 4 GiB (2.75 GiB) and PCI's configuration space.
_PCI_WINDOW = (0xC0000000, 0xDFFFFFFF)

# Table 5.10: WBINVD; every processor has C1; power button, sleep button and RTC wake-up are no fixed hardware; reset.
_FADT_FLAGS = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10
# Table 5.11: devices of ISA; no VGA. The bit for the keyboard controller is 0.
_BOOT_ARCHITECTURE = 1 << 0 | 1 << 2
_NO_C2_C3 = 0x0FFF


def _checksummed(table: bytes, place: int) -> bytes:
    """``table`` with a byte at ``place`` that makes the sum of all bytes 0."""
    return table[:place] + bytes([-(sum(table) - table[place]) & 0xFF]) + table[place + 1 :]


def _table(signature: bytes, revision: int, content: bytes) -> bytes:
    """A table with the header of section 5.2.6."""
    size = _HEADER.size + len(content)
    header = _HEADER.pack(signature, size, revision, 0, _OEM, _OEM_TABLE, 1, _CREATOR, 1)
    return _checksummed(header + content, 9)


def _register(port: int, size: int) -> bytes:
    """A generic address (5.2.3.2): ``size`` bytes of I/O space; ports of no bytes are no register."""
    if not size:
        return bytes(12)
    access = {1: 1, 2: 2, 4: 3}[size]
    return struct.pack("<BBBBQ", 1, 8 * size, 0, access, port)


def rsdp(xsdt_address: int) -> bytes:
    """5.2.5: the pointer to the XSDT, 36 bytes; no RSDT. The first checksum is over 20 bytes, the second over all."""
    first = _checksummed(struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 2, 0), 8)
    return _checksummed(first + struct.pack("<IQB3x", 36, xsdt_address, 0), 32)


def xsdt(addresses: Sequence[int]) -> bytes:
    """5.2.8: the addresses of the other tables, 64 bits each."""
    return _table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))


def facs() -> bytes:
    """5.2.10: 64 bytes without a checksum; nothing in it is used, since the guest never sleeps."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def fadt(facs_address: int, dsdt_address: int) -> bytes:
    """5.2.9: the fixed hardware, 276 bytes. ``facs_address`` must be below 4 GiB."""
    # Always in ACPI mode, so no port of system management (SMI_CMD).
    head = struct.pack("<IIBBHIBBBB", facs_address, dsdt_address, 0, 0, _SCI, 0, 0, 0, 0, 0)
    blocks = struct.pack("<8I", _PM1_EVENT[0], 0, _PM1_CONTROL[0], 0, 0, _PM_TIMER[0], 0, 0)
    lengths = struct.pack("<8B", _PM1_EVENT[1], _PM1_CONTROL[1], 0, _PM_TIMER[1], 0, 0, 0, 0)
    # No flushing by reading, no clock throttling, no alarms by day and month.
    processor = struct.pack("<HHHHBBBBB", _NO_C2_C3, _NO_C2_C3, 0, 0, 0, 0, 0, 0, _RTC_CENTURY)
    flags = struct.pack("<HBI", _BOOT_ARCHITECTURE, 0, _FADT_FLAGS)
    reset = _register(_RESET_PORT, 1) + struct.pack("<BHB", _RESET_VALUE, 0, 5)
    pointers = struct.pack("<QQ", 0, dsdt_address)
    none = _register(0, 0)
    # PM1a, PM1b; PM2, timer; GPE0, GPE1; the two sleep registers of reduced hardware.
    registers = [_register(*_PM1_EVENT), none, _register(*_PM1_CONTROL), none, none, _register(*_PM_TIMER), *[none] * 4]
    hypervisor = bytes(8)
    content = head + blocks + lengths + processor + flags + reset + pointers + b"".join(registers) + hypervisor
    return _table(b"FACP", 6, content)


def madt(vcpus: int) -> bytes:
    """5.2.12: one Local APIC for each vCPU, with the IDs 0 to ``vcpus`` - 1 as QEMU numbers them; one I/O APIC.

    Raises ValueError for a number whose APIC IDs these structures cannot hold.
    """
    if not 1 <= vcpus <= _MAX_APIC_ID + 1:
        raise ValueError(f"{vcpus} vCPUs: found APIC ID {vcpus - 1}, expected 0 to {_MAX_APIC_ID}")
    # 1: the machine has two 8259 interrupt controllers, too.
    head = struct.pack("<II", _LOCAL_APIC, 1)
    processors = [struct.pack("<BBBBI", 0, 8, number, number, 1) for number in range(vcpus)]
    io_apic = struct.pack("<BBBBII", 1, 12, 0, 0, _IO_APIC, 0)
    # ISA's timer is at input 2. PCI's interrupts and the SCI are active high, level triggered (0xD).
    timer = struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)
    levels = [struct.pack("<BBBBIH", 2, 10, 0, line, line, 0xD) for line in (5, _SCI, 10, 11)]
    nmi = struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # every processor: input 1 of its Local APIC
    return _table(b"APIC", 6, b"".join([head, *processors, io_apic, timer, *levels, nmi]))


def dsdt() -> bytes:
    r"""5.2.11.1: the value that powers the machine off (``\_S5``), and the root of PCI with its resources."""
    zero = aml.integer(0)
    root = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", zero),
        aml.name(
            "_CRS",
            aml.resources(
                aml.buses(0, 0xFF),
                aml.fixed_ports(0xCF8, 8),
                aml.ports(0, 0xCF7),
                aml.ports(0xD00, 0xFFFF),
                aml.memory(*_PCI_WINDOW),
            ),
        ),
    )
    return _table(b"DSDT", 2, aml.name("_S5", aml.package(zero, zero, zero, zero)) + aml.scope("_SB", root))


def all_tables(vcpus: int, address: int = ADDRESS) -> bytes:
    """All tables of a guest with ``vcpus`` vCPUs as they lie in its memory from ``address`` on; the RSDP is first."""
    places: dict[str, int] = {}
    content = bytearray(_FACS_ALIGNMENT)

    def add(name: str, table: bytes) -> None:
        places[name] = address + len(content)
        content.extend(table + bytes(-len(table) % _FACS_ALIGNMENT))

    add("facs", facs())
    add("dsdt", dsdt())
    add("fadt", fadt(places["facs"], places["dsdt"]))
    add("madt", madt(vcpus))
    add("xsdt", xsdt([places["fadt"], places["madt"]]))
    pointer = rsdp(places["xsdt"])
    content[: len(pointer)] = pointer
    return bytes(content)


def check_vcpus(vcpus: int) -> None:
    """Raises :class:`UserError` for a number of vCPUs that no stage is made for."""
    if not 1 <= vcpus <= MAX_VCPUS:
        raise UserError(f"CPUS={vcpus}: the stage has ACPI tables for 1 to {MAX_VCPUS} vCPUs")


def make_tables(*, vcpus: int, output: Path) -> None:
    """Write the tables of a guest with ``vcpus`` vCPUs to ``output``. Raises :class:`UserError`."""
    check_vcpus(vcpus)
    output.write_bytes(all_tables(vcpus))
