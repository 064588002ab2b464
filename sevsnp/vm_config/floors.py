# SPDX-License-Identifier: Apache-2.0
"""Minimum TCB versions by processor: AMD counts SNP firmware for each product, and microcode for each CPUID.

Siena and Bergamo have Genoa's keys and their own microcode, so one floor for all of them is too low for one of them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sevsnp.errors import UserError
from sevsnp.settings.values import parse_minimum_tcb
from sevsnp.vm_config.config import Product, Tcb
from sevsnp.vm_config.processor import Cpuid, product_of

_CPUID = re.compile(r"(0x[0-9a-f]{1,2}|[0-9]{1,3})/(0x[0-9a-f]{1,2}|[0-9]{1,3})(?:/(0x[0-9a-f]|[0-9]{1,2}))?")
CPUID_FORM = "family/model/stepping, as 0x19/0x11/1, or family/model for every stepping"
_PARTS = ("bootloader", "tee", "snp", "microcode")


class Processor(NamedTuple):
    """CPUID family and model, and a stepping or None for every stepping."""

    family: int
    model: int
    stepping: int | None = None

    def covers(self, cpuid: Cpuid | None) -> bool:
        return (
            cpuid is not None
            and (self.family, self.model) == (cpuid.family, cpuid.model)
            and self.stepping in (None, cpuid.stepping)
        )

    @property
    def product(self) -> Product:
        """Raises :class:`UserError` for a processor of no known product."""
        return product_of(Cpuid(self.family, self.model, self.stepping or 0))

    def __str__(self) -> str:
        return f"{self.family:#x}/{self.model:#x}{'' if self.stepping is None else f'/{self.stepping}'}"


class Floor(NamedTuple):
    """A floor for one kind of processor."""

    processor: Processor
    tcb: Tcb

    def document(self) -> dict[str, Any]:
        """As :func:`parse_floors` reads it."""
        return {"cpuid": str(self.processor)} | {name: n for name, n in vars(self.tcb).items() if n is not None}

    def setting(self) -> str:
        """As the setting MIN_TCB has it."""
        return f"cpuid:{self.processor},{self.tcb.setting()}"


def floor_for(floors: Sequence[Floor], cpuid: Cpuid | None) -> Tcb | None:
    """The floor for a processor: the one of its stepping before the one of its model; None if there is none."""
    found = [floor for floor in floors if floor.processor.covers(cpuid)]
    found.sort(key=lambda floor: floor.processor.stepping is None)
    return found[0].tcb if found else None


def parse_floors(entries: Any) -> tuple[Floor, ...]:
    """Floors from a document's list of tables with ``cpuid`` and the parts of a TCB version. Raises ValueError.

    Each kind of processor may be there once. Turin's tables have ``fmc``, the others have not.
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError("a list of tables, one for each processor")
    found: list[Floor] = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("cpuid"), str):
            raise ValueError(f"tables with cpuid = {CPUID_FORM}")
        processor = parse_processor(entry["cpuid"])
        if processor in {floor.processor for floor in found}:
            raise ValueError(f"each processor once; found {processor} twice")
        found.append(Floor(processor, _parse_tcb(entry, processor)))
    return tuple(found)


def parse_processor(text: str) -> Processor:
    """A processor from text, as ``0x19/0x11/1``. Raises ValueError."""
    match = _CPUID.fullmatch(text.lower())
    if not match:
        raise ValueError(CPUID_FORM)
    family, model, stepping = (None if part is None else int(part, 0) for part in match.groups())
    assert family is not None and model is not None
    return Processor(family, model, stepping)


def _parse_tcb(entry: Mapping[str, Any], processor: Processor) -> Tcb:
    try:
        product = processor.product
    except UserError as error:
        raise ValueError(f"a known processor; {error.message}") from None
    parts = (*_PARTS, "fmc") if product == "Turin" else _PARTS
    if set(entry) != {"cpuid", *parts}:
        raise ValueError(f"cpuid and {', '.join(parts)} for {processor}, which is a {product}")
    for name in parts:
        if type(entry[name]) is not int or not 0 <= entry[name] <= 255:
            raise ValueError(f"a number from 0 to 255 for {name} of {processor}")
    tcb = Tcb(**{name: entry[name] for name in parts})
    if tcb.is_zero():
        raise ValueError(f"a number above 0 somewhere for {processor}")
    return tcb


def floors_of_setting(text: str) -> tuple[Floor, ...]:
    """The floors of a setting MIN_TCB that names processors; empty if it names none. Raises ValueError.

    Parts that are not stated are zero, as in a setting without processors.
    """
    entries: list[dict[str, Any]] = []
    for cpuid, parts in parse_minimum_tcb(text):
        if not cpuid:
            return ()
        try:
            turin = parse_processor(cpuid).product == "Turin"
        except UserError as error:
            raise ValueError(f"a known processor; {error.message}") from None
        kept = {name: level for name, level in parts.items() if name != "fmc" or turin or level}
        entries.append({"cpuid": cpuid, **kept})
    return parse_floors(entries)
