# SPDX-License-Identifier: Apache-2.0
"""AMD's own extensions in the certificate of a VCEK or VLEK.

Source: AMD 57230 (OIDs 1.3.6.1.4.1.3704.1.*). Every extension of the product's structure version is required, and an
extension that belongs to another product is refused.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from sevsnp.vm_config.config import Product, Tcb

Signer = Literal["VCEK", "VLEK"]

_AMD = "1.3.6.1.4.1.3704.1"
STRUCT_VERSION, PRODUCT_NAME, HWID, CSP_ID = f"{_AMD}.1", f"{_AMD}.2", f"{_AMD}.4", f"{_AMD}.5"
BOOTLOADER, TEE, SNP, MICROCODE, FMC = (f"{_AMD}.3.{number}" for number in (1, 2, 3, 8, 9))
RESERVED_SPLS = tuple(f"{_AMD}.3.{number}" for number in (4, 5, 6, 7))
PARSER_ERRORS = (
    ValueError, TypeError, OverflowError, UnsupportedAlgorithm,
    x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType,
)  # fmt: skip


class ExtensionError(Exception):
    """A leaf certificate lacks one of AMD's extensions, or has one with a wrong value."""


class LeafExtensions(NamedTuple):
    """What a leaf certifies: product name and TCB version, and a chip (VCEK) or a cloud provider (VLEK).

    ``hwid`` is the chip of a VCEK (64 bytes, on Turin 8), ``csp`` the cloud provider of a VLEK.
    """

    struct_version: int
    product_name: str
    tcb: Tcb
    hwid: bytes | None
    csp: str | None

    @property
    def signer(self) -> Signer:
        return "VLEK" if self.hwid is None else "VCEK"

    @property
    def product(self) -> str:
        """The product without its stepping, for example Milan for "Milan-B0"."""
        return self.product_name.split("-")[0]


@lru_cache(maxsize=1024)
def read_extensions(leaf: x509.Certificate, product: Product) -> LeafExtensions:
    """AMD's extensions of a VCEK or VLEK of ``product``. Raises :class:`ExtensionError`."""
    try:
        found = _unrecognized(leaf)
        tcb = Tcb(
            bootloader=_small_integer(found, BOOTLOADER),
            tee=_small_integer(found, TEE),
            snp=_small_integer(found, SNP),
            microcode=_small_integer(found, MICROCODE),
            fmc=_small_integer(found, FMC) if product == "Turin" else None,
        )
        if product != "Turin" and FMC in found:
            raise ValueError(f"extension {FMC} (FMC) on a {product} certificate")
        for oid in RESERVED_SPLS:
            if oid in found and _small_integer(found, oid):
                raise ValueError(f"extension {oid}: a reserved component is not zero")
        struct_version = _small_integer(found, STRUCT_VERSION)
        if struct_version != (1 if product == "Turin" else 0):
            raise ValueError(f"structure version {struct_version} on a {product} certificate")
        # A VLEK names a provider, a VCEK a chip. A leaf that names both, or neither, is not valid.
        if CSP_ID in found and HWID in found:
            raise ValueError(f"extensions {HWID} and {CSP_ID}: a chip and a cloud provider in one certificate")
        return LeafExtensions(
            struct_version=struct_version,
            product_name=_ia5_string(found, PRODUCT_NAME),
            tcb=tcb,
            hwid=None if CSP_ID in found else _hwid(found, product),
            csp=_ia5_string(found, CSP_ID) if CSP_ID in found else None,
        )
    except PARSER_ERRORS as error:
        raise ExtensionError(str(error)[:200]) from error


def named_product(leaf: x509.Certificate) -> Product | None:
    """The product that a leaf's extension names, not yet verified; None if the extension names no known product."""
    try:
        name = _ia5_string(_unrecognized(leaf), PRODUCT_NAME).split("-")[0]
    except PARSER_ERRORS:
        return None
    return name if name in ("Milan", "Genoa", "Turin") else None  # type: ignore[return-value]


def _unrecognized(leaf: x509.Certificate) -> dict[str, bytes]:
    return {
        extension.oid.dotted_string: extension.value.value
        for extension in leaf.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }


def _value(found: dict[str, bytes], oid: str) -> bytes:
    if oid not in found:
        raise ValueError(f"no extension {oid}")
    return found[oid]


def _small_integer(found: dict[str, bytes], oid: str) -> int:
    """Read a DER INTEGER from 0 to 255; values from 128 on have a leading zero byte."""
    value = _value(found, oid)
    if value[:2] == b"\x02\x01" and len(value) == 3 and value[2] < 0x80:
        return value[2]
    if value[:3] == b"\x02\x02\x00" and len(value) == 4 and value[3] >= 0x80:
        return value[3]
    raise ValueError(f"extension {oid}: found {value[:16].hex()}, expected an INTEGER from 0 to 255")


def _ia5_string(found: dict[str, bytes], oid: str) -> str:
    value = _value(found, oid)
    if value[:1] != b"\x16" or len(value) < 3 or value[1] != len(value) - 2 or value[1] > 0x7F:
        raise ValueError(f"extension {oid}: found {value[:16].hex()}, expected an IA5String")
    return value[2:].decode("ascii")


def _hwid(found: dict[str, bytes], product: Product) -> bytes:
    value = _value(found, HWID)
    length = 8 if product == "Turin" else 64
    # Check the length of a raw id first: a raw id may itself begin with the bytes of a DER header.
    if len(value) == length:
        return value
    if len(value) == length + 2 and value[:2] == bytes((0x04, length)):
        return value[2:]
    raise ValueError(f"extension {HWID}: found {len(value)} bytes, expected {length} for {product}")
