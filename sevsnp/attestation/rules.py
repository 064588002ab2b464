# SPDX-License-Identifier: Apache-2.0
"""The rules of a policy for one value: one of a set, a minimum, a rule for each bit, or anything with a reason."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sevsnp.attestation.floors import Floor, floor_for
from sevsnp.attestation.report import Cpuid
from sevsnp.vm_config.config import Tcb

Value = int | str | bytes | tuple[int, ...]


class OneOf(NamedTuple):
    """Equal to one of ``values``."""

    values: tuple[Value, ...]


class AtLeast(NamedTuple):
    """A number, or a version as a tuple of numbers, that is not below ``floor``."""

    floor: int | tuple[int, ...]


class Anything(NamedTuple):
    """The value is not compared; ``reason`` says why, and every verdict repeats the reason."""

    reason: str


class TcbFloor(NamedTuple):
    """No component is below that of ``floor``. A TCB version is not ordered as one number."""

    floor: Tcb


class TcbFloors(NamedTuple):
    """As :class:`TcbFloor`, with a floor for each kind of processor; ``source`` says from where they are, or is empty.

    After ``end`` (aware), they hold no more; None if they have no end.
    A processor without a floor does not satisfy it, and neither does a report that names no processor.
    """

    floors: tuple[Floor, ...]
    source: str = ""
    end: datetime | None = None


@dataclass(frozen=True)
class ChipTcb:
    """A TCB version and the processor that has it; None for a report of version 2, which does not name it."""

    tcb: Tcb
    cpuid: Cpuid | None


class Unstated(NamedTuple):
    """A missing floor; no value satisfies it. ``demanded``: the policy requires a floor on every platform."""

    demanded: bool


class AllSet(NamedTuple):
    """Every bit of ``mask`` is one."""

    mask: int


class Bits(NamedTuple):
    """The rule for each bit: its name, then its position and True (one), False (zero) or :class:`Anything`."""

    rules: Mapping[str, tuple[int, "bool | Anything"]]


Rule = OneOf | AtLeast | Anything | TcbFloor | TcbFloors | Unstated | AllSet


def holds(rule: Rule, value: Value | Tcb | ChipTcb | None) -> bool:
    """Whether ``value`` satisfies ``rule``; a missing value (None) satisfies only :class:`Anything`."""
    match rule, value:
        case Anything(), _:
            return True
        case OneOf(values), bytes():
            return any(isinstance(one, bytes) and hmac.compare_digest(one, value) for one in values)
        case OneOf(values), int() | str() | tuple():
            return value in values
        case AtLeast(int(floor)), int():
            return value >= floor
        case AtLeast(tuple() as floor), tuple():
            return value >= floor
        case TcbFloor(floor), Tcb():
            return at_most(floor, value)
        case TcbFloor(floor), ChipTcb(tcb):
            return at_most(floor, tcb)
        case TcbFloors(floors), ChipTcb(tcb, cpuid):
            own = floor_for(floors, cpuid)
            return own is not None and at_most(own, tcb)
        case AllSet(mask), int():
            return value & mask == mask
    return False


def at_most(low: Tcb, high: Tcb) -> bool:
    """Whether no component of ``low`` is above the same component of ``high``."""
    return all(a <= b for a, b in zip(_parts(low), _parts(high), strict=True))


def _parts(tcb: Tcb) -> tuple[int, ...]:
    return (tcb.fmc or 0, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode)


def show(value: Value | Tcb | ChipTcb | None) -> str:
    """A value as readable text: bytes in hex, versions with dots, TCB versions by component."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:#x}" if value > 0xFFFF else str(value)
        case bytes():
            return value.hex() if any(value) else f"zero ({len(value)} bytes)"
        case ChipTcb(tcb, cpuid):
            return f"{show(tcb)}{f' on {show_cpuid(cpuid)}' if cpuid else ''}"
        case tuple():
            return ".".join(str(part) for part in value)
        case Tcb():
            fmc = "" if value.fmc is None else f"fmc {value.fmc} "
            return f"{fmc}bootloader {value.bootloader} tee {value.tee} snp {value.snp} microcode {value.microcode}"
    return str(value)


def show_cpuid(cpuid: Cpuid) -> str:
    """A processor as policies name it: ``0x19/0x11/1``."""
    return f"{cpuid.family:#x}/{cpuid.model:#x}/{cpuid.stepping}"


def show_rule(rule: Rule) -> str:
    """What a rule expects, as text."""
    match rule:
        case OneOf(values):
            return " or ".join(show(value) for value in values) or "nothing at all"
        case AtLeast(floor):
            return f"at least {show(floor)}"
        case TcbFloor(floor):
            return f"at least {show(floor)}"
        case TcbFloors(floors, source, _):
            named = "; ".join(f"{floor.processor}: {show(floor.tcb)}" for floor in floors)
            return f"at least, by processor, {named}{f' ({source})' if source else ''}"
        case AllSet(mask):
            return f"all bits of {mask:#x}"
        case Unstated():
            return "a minimum that is stated"
        case Anything():
            return "anything"
