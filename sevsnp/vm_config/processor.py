# SPDX-License-Identifier: Apache-2.0
"""Processors by CPUID, and the product whose keys and TCB layout one has (AMD 57230)."""

from typing import NamedTuple

from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product


class Cpuid(NamedTuple):
    """CPUID family, model and stepping of the chip, 8 bits each. Reports have them from version 3 on."""

    family: int
    model: int
    stepping: int


def product_of(cpuid: Cpuid) -> Product:
    """The product whose keys and TCB layout a chip has; Siena and Bergamo count as Genoa."""
    match cpuid.family, cpuid.model:
        case 0x19, model if model <= 0x0F:
            return "Milan"
        case 0x19, model if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
            return "Genoa"
        case 0x1A, model if model <= 0x11:
            return "Turin"
    raise UserError(f"report: CPUID family {cpuid.family:#x} model {cpuid.model:#x}: no known product")
