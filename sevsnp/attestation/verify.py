# SPDX-License-Identifier: Apache-2.0
"""The production verifier: evidence of AMD hardware, or a refusal.

Its roots are AMD's, pinned here. Nothing else names a root: no parameter, option, variable, file or evidence field.
"""

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

if TYPE_CHECKING:
    from sevsnp.attestation.inspection import Inspection

__all__ = [
    "Appraisal", "Check", "Evidence", "Expected", "HardwareVerdict", "Reason", "Refused", "Undecided",
    "amd_service", "appraise_report", "inspect_report", "verify_report",
]  # fmt: skip

# SHA-256 of the DER of AMD's ARK certificates; Genoa's also stands above Siena and Bergamo.
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
    """Genuine AMD hardware runs the expected guest. Only :func:`verify_report` makes one."""

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
    """How evidence of AMD hardware comes out at the time ``now`` (aware): an object, whatever is wrong with it."""
    return appraise(evidence, expected, now, _AMD, endorser)


def verify_report(
    evidence: Evidence, expected: Expected, now: datetime, *, endorser: Endorser | None = None
) -> HardwareVerdict:
    """The verdict for what acts on it. Raises :class:`Refused`, or :class:`Undecided`, which is one too."""
    return HardwareVerdict(appraise_report(evidence, expected, now, endorser=endorser), _TOKEN)


def inspect_report(evidence: Evidence, now: datetime, *, endorser: Endorser | None = None) -> "Inspection":
    """What a report says and whether AMD hardware says so; nothing about whether it is acceptable."""
    from sevsnp.attestation.inspection import inspect

    return inspect(evidence, now, _AMD, endorser)


def amd_service(url: str | None = None, offline: bool = False, cache: Path | None = None) -> Endorser:
    """AMD's key distribution service, or a mirror of it at ``url``, with the user's cache; ``offline`` asks nobody."""
    from sevsnp.attestation.kds import KDS, Kds
    from sevsnp.attestation.kds_cache import Cache, default_directory

    return Kds(_AMD, Cache(cache or default_directory()), url or KDS, offline)
