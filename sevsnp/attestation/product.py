# SPDX-License-Identifier: Apache-2.0
"""The product of a report of version 2, which does not name it: from the certificate whose key signed the report.

The product decides how the bytes of a TCB version are read, and whether a chip id has 64 bytes or 8 (AMD 56860, 57230).
A product that no certificate confirms is a guess. A guess never leads to a refusal of the evidence.
"""

from datetime import datetime
from typing import Protocol, get_args

from cryptography import x509

from sevsnp.attestation import chain as chains
from sevsnp.attestation.checklist import Checklist, Unreachable
from sevsnp.attestation.extensions import named_product
from sevsnp.attestation.outcome import Reason
from sevsnp.attestation.report import Report, SigningKey, parse_report
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb

PRODUCTS: tuple[Product, ...] = get_args(Product)
REMEDY = "a report of version 2 does not name its product: give its VCEK, or say the product with --product"


class Asked(Protocol):
    """The part of an endorser that is asked for the VCEK of a chip: see authentication.py."""

    def leaf(self, product: Product, chip_id: bytes, tcb: Tcb, now: datetime) -> x509.Certificate: ...


def readings(raw: bytes) -> dict[Product, Report]:
    """The report as each product would have made it; only the products whose layout the bytes fit.

    From version 3 on this is one product. Raises :class:`UserError` if the bytes are a report of no product.
    """
    found: dict[Product, Report] = {}
    problem: UserError | None = None
    for product in PRODUCTS:
        try:
            one = parse_report(raw, product)
        except UserError as error:
            problem = problem or error
            continue
        # Turin's chip ids have 8 bytes, which the report pads with zeros.
        if one.product != "Turin" or not any(one.chip_id[8:]):
            found[one.product] = one
    if not found:
        raise problem or UserError("report: no product's")
    return found


def find_reading(
    log: Checklist,
    found: dict[Product, Report],
    sent: list[x509.Certificate],
    known: list[x509.Certificate],
    hint: Product | None,
    now: datetime,
    endorser: Asked,
) -> Report:
    """The reading of a version-2 report that its signer confirms; else ``hint``'s, or the one of the evidence's leaf.

    ``found`` is from :func:`readings`, ``sent`` are the evidence's certificates, ``known`` the endorser's. Without all
    of these, the endorser is asked for the VCEK as each product's. Raises Stop; ``log`` has the reason.
    """
    first = next(iter(found.values()))
    if first.signing_key == SigningKey.NONE:
        return first  # nobody signed it, whatever the product is
    signers = [one for one in chains.leaves([*sent, *known]) if report_signed_by(one, first)]
    named = [product for one in signers if (product := named_product(one))]
    if fitting := [product for product in named if product in found]:
        return found[fitting[0]]
    if named:
        log.attempt(Reason.REPORT_FORMAT, lambda: parse_report(first.raw, named[0]))
        log.stop(Reason.REPORT_FORMAT, f"the chip id is not one of {named[0]}, whose key signed the report")
    if hint in found:
        return found[hint]
    if own := chains.leaves(sent):
        # The evidence's own certificate did not sign the report: no product makes it authentic.
        return found.get(named_product(own[0]) or first.product, first)
    reading, problem = _asked(found, now, endorser)
    if reading is None:
        what = f"the report does not have {hint}'s layout, and no certificate names its product" if hint else REMEDY
        log.give_up(Reason.CERTIFICATES, f"{what} ({problem})")
    return reading


def report_signed_by(leaf: x509.Certificate, report: Report) -> bool:
    """Whether the leaf's key signed the report."""
    return chains.verify_signature(leaf, report.signature_r, report.signature_s, report.signed)


def _asked(found: dict[Product, Report], now: datetime, endorser: Asked) -> tuple[Report | None, str]:
    """The reading for whose product the endorser has the chip's VCEK, or None and the reason."""
    if next(iter(found.values())).signing_key == SigningKey.VLEK:
        return None, "only the cloud provider hands out its VLEK, with the evidence"
    problems = []
    # A chip id with 56 zero bytes is hardly another product's than Turin's.
    for product in sorted(found, key=lambda one: one != "Turin"):
        report = found[product]
        try:
            endorser.leaf(product, report.chip_id, report.reported_tcb, now)
        except Unreachable as error:
            problems.append(f"{product}: {error}")
            continue
        # A chip has one product. If its VCEK did not sign the report, that is known now, and no guess.
        return report, ""
    return None, "; ".join(problems)
