# SPDX-License-Identifier: Apache-2.0
"""The production verifier: it accepts only evidence of AMD hardware.

Its trust roots are AMD's and are pinned here. No parameter, option, variable, file or evidence field can name another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sevsnp.attestation.appraisal import (
    Appraisal,
    Check,
    Evidence,
    Expected,
    Reason,
    Refused,
    Undecided,
    appraise,
)
from sevsnp.attestation.authentication import Endorser
from sevsnp.attestation.chain import TrustRoot
from sevsnp.attestation.outcome import Accepted
from sevsnp.vm_config.config import Product

if TYPE_CHECKING:
    from sevsnp.attestation.inspection import Inspection

__all__ = [
    "Appraisal", "Check", "Evidence", "Expected", "HardwareVerdict", "Reason", "Refused", "Undecided",
    "amd_service", "appraise_report", "inspect_report", "verify_report",
]  # fmt: skip

# SHA-256 of the DER of AMD's ARK certificates; Genoa's is also the root of Siena and Bergamo.
_AMD = TrustRoot(
    domain="amd",
    platform="snp",
    pins=(
        (bytes.fromhex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"), "Milan"),
        (bytes.fromhex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"), "Genoa"),
        (bytes.fromhex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"), "Turin"),
    ),
    vendor=True,
)

_TOKEN = object()


@dataclass(frozen=True, init=False)
class HardwareVerdict(Accepted):
    """The verdict that genuine AMD hardware runs the expected guest. Only :func:`verify_report` makes this verdict."""

    def __init__(self, appraisal: Appraisal, token: object) -> None:
        if token is not _TOKEN:
            raise TypeError("a HardwareVerdict comes from verify_report only")
        super().__init__(appraisal)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("HardwareVerdict has no subclasses")

    def to_json(self) -> dict[str, Any]:
        """For programs: ``accepted`` is true under ``trust_domain`` "amd", and every check is listed."""
        return self.appraisal.to_json()


def appraise_report(
    evidence: Evidence, expected: Expected, now: datetime, *, endorser: Endorser | None = None
) -> Appraisal:
    """Appraise evidence of AMD hardware at the time ``now`` (aware). Never raises for evidence."""
    return appraise(evidence, expected, now, _AMD, endorser)


def verify_report(
    evidence: Evidence, expected: Expected, now: datetime, *, endorser: Endorser | None = None
) -> HardwareVerdict:
    """Appraise evidence and return a verdict that code may act on.

    Raises :class:`Refused`, or its subclass :class:`Undecided`.
    """
    return HardwareVerdict(appraise_report(evidence, expected, now, endorser=endorser), _TOKEN)


def inspect_report(
    evidence: Evidence, now: datetime, *, endorser: Endorser | None = None, product: Product | None = None
) -> "Inspection":
    """What a report says and whether AMD hardware made it, but not whether the report is acceptable.

    ``product`` is the caller's word for a report of version 2 whose product no certificate names.
    """
    from sevsnp.attestation.inspection import inspect

    return inspect(evidence, now, _AMD, endorser, product)


def amd_service(
    url: str | None = None,
    offline: bool = False,
    cache: Path | None = None,
    *,
    timeout: float | None = None,
    say: Callable[[str], None] | None = None,
) -> Endorser:
    """AMD's key distribution service or a mirror at ``url``, with the user's cache; ``offline``: only the cache.

    ``timeout`` is the limit in seconds for all requests together. ``say`` is told of each request before it is made.
    """
    from sevsnp.attestation.kds import KDS, Kds
    from sevsnp.attestation.kds_cache import Cache, default_directory
    from sevsnp.attestation.kds_http import Limits
    from sevsnp.system import progress

    limits = Limits(whole=timeout)
    return Kds(_AMD, Cache(cache or default_directory()), url or KDS, offline, limits, say=say or progress.step)
