"""The production verifier: evidence of AMD hardware, or a refusal.

Its roots are AMD's, pinned here. Nothing else names a root: no parameter, option, variable, file or evidence field.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from sevsnp.attestation.appraisal import Appraisal, Check, Evidence, Expected, Reason, Refused, appraise
from sevsnp.attestation.certificates import TrustRoot
from sevsnp.attestation.report import Report

__all__ = ["Check", "Evidence", "Expected", "HardwareVerdict", "Reason", "Refused", "verify_report"]

# SHA-256 of the DER of AMD's ARK certificates; Genoa's also stands above Siena and Bergamo.
_AMD = TrustRoot(
    domain="amd",
    platform="snp",
    pins=(
        (bytes.fromhex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"), "Milan"),
        (bytes.fromhex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"), "Genoa"),
        (bytes.fromhex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"), "Turin"),
    ),
)

_TOKEN = object()


@dataclass(frozen=True, init=False)
class HardwareVerdict:
    """Genuine AMD hardware runs the expected guest. Only :func:`verify_report` makes one."""

    report: Report
    checks: tuple[Check, ...]
    open_roads: tuple[str, ...]

    def __init__(self, appraisal: Appraisal, token: object) -> None:
        if token is not _TOKEN:
            raise TypeError("a HardwareVerdict comes from verify_report only")
        object.__setattr__(self, "report", appraisal.report)
        object.__setattr__(self, "checks", appraisal.checks)
        object.__setattr__(self, "open_roads", appraisal.open_roads)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("HardwareVerdict has no subclasses")

    def to_json(self) -> dict[str, Any]:
        """For programs: ``accepted`` is true under ``trust_domain`` "amd", and every check is listed."""
        return {
            "trust_domain": "amd",
            "accepted": True,
            "measurement": self.report.measurement.hex(),
            "chip_id": self.report.chip_id.hex(),
            "report_data": self.report.report_data.hex(),
            "open": list(self.open_roads),
            "checks": [check.to_json() for check in self.checks],
        }


def verify_report(evidence: Evidence, expected: Expected, now: datetime) -> HardwareVerdict:
    """Appraise evidence of AMD hardware at the time ``now`` (aware). Raises :class:`Refused`."""
    return HardwareVerdict(appraise(evidence, expected, now, _AMD), _TOKEN)
