# SPDX-License-Identifier: Apache-2.0
"""Evidence, endorsements and their verification (RFC 9334 terms, AMD 56860 formats).

    from sevsnp.attestation import Policy, verify
    policy = Policy.of(measurement="5fee…", report_data="ab12…", minimum_tcb={…})
    verdict = verify(report, policy)  # or Refused is raised

The names below are loaded when they are first used, because every import of a module of this room comes through here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sevsnp.attestation.api import appraise, verify
    from sevsnp.attestation.outcome import Appraisal, Refused, Undecided
    from sevsnp.attestation.policy import Policy
    from sevsnp.attestation.verifier import HardwareVerdict, amd_service

__all__ = [
    "Appraisal", "HardwareVerdict", "Policy", "Refused", "Undecided", "amd_service", "appraise", "verify",
]  # fmt: skip

_PLACES = {
    "appraise": "api", "verify": "api", "Appraisal": "outcome", "Refused": "outcome", "Undecided": "outcome",
    "Policy": "policy", "HardwareVerdict": "verifier", "amd_service": "verifier",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
