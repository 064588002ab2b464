# SPDX-License-Identifier: Apache-2.0
"""The rules of a policy for one value: one of a set, a minimum, a rule for each bit, or anything with a reason."""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sevsnp.vm_config.config import Tcb
from sevsnp.vm_config.floors import Floor, floor_for
from sevsnp.vm_config.processor import Cpuid

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


class Text(NamedTuple):
    """A text that is made only when it is read: ``form`` (str.format) with each of ``values`` as in :func:`show`.

    Most evidence passes most checks, and nobody reads the texts of those.
    """

    form: str
    values: "tuple[Shown, ...]"


Rule = OneOf | AtLeast | Anything | TcbFloor | TcbFloors | Unstated | AllSet
Compared = Value | Tcb | ChipTcb | None
Shown = Compared | Text | datetime


def comparison(rule: Rule) -> Callable[[Compared], bool]:
    """The function that says whether a value satisfies ``rule``; it is made once for a policy.

    A missing value (None) satisfies only :class:`Anything`.
    """
    match rule:
        case Anything():
            return lambda _: True
        case OneOf(values):
            digests = [one for one in values if isinstance(one, bytes)]
            if digests == [*values] and len(values) == 1:
                return lambda value: isinstance(value, bytes) and hmac.compare_digest(digests[0], value)
            others = [one for one in values if not isinstance(one, bytes)]
            return lambda value: (
                any(hmac.compare_digest(one, value) for one in digests) if isinstance(value, bytes) else value in others
            )
        case AtLeast(int(number)):
            return lambda value: isinstance(value, int) and value >= number
        case AtLeast(tuple() as version):
            return lambda value: isinstance(value, tuple) and value >= version
        case TcbFloor(lowest):
            return lambda value: (tcb := tcb_of(value)) is not None and at_most(lowest, tcb)
        case TcbFloors(floors):
            return lambda value: (
                isinstance(value, ChipTcb)
                and (own := floor_for(floors, value.cpuid)) is not None
                and at_most(own, value.tcb)
            )
        case AllSet(mask):
            return lambda value: isinstance(value, int) and value & mask == mask
    return lambda _: False


def tcb_of(value: Compared) -> Tcb | None:
    """The TCB version in a value, whether or not it names a processor; None if there is none."""
    return value.tcb if isinstance(value, ChipTcb) else value if isinstance(value, Tcb) else None


def at_most(low: Tcb, high: Tcb) -> bool:
    """Whether no component of ``low`` is above the same component of ``high``."""
    return (
        low.bootloader <= high.bootloader
        and low.tee <= high.tee
        and low.snp <= high.snp
        and low.microcode <= high.microcode
        and (low.fmc or 0) <= (high.fmc or 0)
    )


def show(value: Shown) -> str:
    """A value as readable text: bytes in hex, versions with dots, TCB versions by component, times in UTC."""
    match value:
        case str():
            return value
        case None:
            return "nothing"
        case datetime():
            return f"{value:%Y-%m-%dT%H:%M:%SZ}"
        case Text(form, values):
            return form.format(*map(show, values))
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
