# SPDX-License-Identifier: Apache-2.0
"""The verifier in one call, for a program that has a report and a policy and no VM config."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sevsnp.attestation.appraisal import Appraisal, Evidence, Expected
from sevsnp.attestation.authentication import Endorser
from sevsnp.attestation.policy import Policy
from sevsnp.attestation.report_input import NotAReport, read_certificates, read_input
from sevsnp.attestation.verifier import HardwareVerdict, amd_service, appraise_report, verify_report

__all__ = ["appraise", "read_evidence", "verify"]


def verify(
    report: bytes,
    policy: Policy,
    *,
    certificates: Sequence[bytes] = (),
    at: datetime | None = None,
    endorser: Endorser | None = None,
) -> HardwareVerdict:
    """Verify a report of AMD hardware, in any form that the commands take.

    ``certificates`` are the contents of certificate files in any form. What is missing comes from ``endorser``, by
    default AMD's service with the user's cache. ``at`` (aware) is when certificates must be valid, by default now.
    Raises :class:`Refused`, or its subclass :class:`Undecided`; both have every check.
    """
    evidence = read_evidence(report, certificates)
    return verify_report(evidence, Expected(policy), at or datetime.now(UTC), endorser=endorser or amd_service())


def appraise(
    report: bytes,
    policy: Policy,
    *,
    certificates: Sequence[bytes] = (),
    at: datetime | None = None,
    endorser: Endorser | None = None,
) -> Appraisal:
    """As :func:`verify`, but good or bad evidence gives an appraisal with every check."""
    evidence = read_evidence(report, certificates)
    return appraise_report(evidence, Expected(policy), at or datetime.now(UTC), endorser=endorser or amd_service())


def read_evidence(report: bytes, certificates: Sequence[bytes] = (), name: str = "report") -> Evidence:
    """Evidence from files in any form; what is no report is evidence that the appraisal refuses."""
    try:
        found = read_input(report, name)
    except NotAReport as error:
        return Evidence(b"", problem=error.message)
    table, single = found.certificate_table, list(found.certificates)
    for data in certificates:
        its_table, its = read_certificates(data)
        table = its_table or table
        single += its
    return Evidence(found.report, table, tuple(single), found.claims, notes=found.notes)
