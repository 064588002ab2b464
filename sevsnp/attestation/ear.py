# SPDX-License-Identifier: Apache-2.0
"""An appraisal as an EAR, a signed attestation result that other programs read: a JWT with ES256 or ES384.

Sources: draft-ietf-rats-ear-04 (claims), draft-ietf-rats-ar4si (the numbers of the trustworthiness vector), RFC 9711
(EAT: eat_profile, eat_nonce), RFC 9782 (typ). The key is the relying party's own: an EAR says what its verifier found,
and whoever trusts that verifier needs no evidence.
"""

import base64
import importlib.metadata
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from sevsnp.attestation.inspection import describe
from sevsnp.attestation.outcome import Appraisal, Check, Reason
from sevsnp.errors import UserError

PROFILE = "tag:ietf.org,2026:rats/ear#04"
_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384"}
_DISTRIBUTION = "openend2e-sevsnp"

# AR4SI 2.3: 0 says nothing, 2 to 31 affirms, 32 to 95 warns, 96 and more contraindicates.
_NOTHING, _AFFIRMED, _WARNED, _AGAINST = 0, 2, 32, 96
_BOOTED = 3  # of executables: only approved ones were loaded while it booted; later ones are not in a report
_AUTHENTIC = (
    Reason.REPORT_FORMAT, Reason.CERTIFICATES, Reason.UNKNOWN_ROOT, Reason.VALIDITY, Reason.SIGNATURE, Reason.PRODUCT,
    Reason.SIGNING_KEY, Reason.CHIP_ID, Reason.TCB,
)  # fmt: skip
_FLOORS = (Reason.TCB_FLOOR, Reason.REPORTED_TCB, Reason.COMMITTED_TCB, Reason.LAUNCH_TCB)
# For each claim: the checks that affirm it, those of them that have to be compared for more than a warning, the number.
_CLAIMS: Mapping[str, tuple[tuple[Reason, ...], tuple[Reason, ...], int]] = {
    "instance-identity": ((*_AUTHENTIC, Reason.ALLOWED_CHIP), (), _AFFIRMED),
    "hardware": (
        (*_AUTHENTIC, *_FLOORS, Reason.REVOCATION, Reason.REPORT_VERSION, Reason.ALLOWED_PRODUCT,
         Reason.ALLOWED_SIGNER, Reason.CSP, Reason.MASK_CHIP_KEY, Reason.TCB_ORDER, Reason.PROVISIONAL, Reason.FIRMWARE,
         Reason.MITIGATIONS, Reason.PLATFORM_INFO),
        _FLOORS, _AFFIRMED,
    ),
    "executables": ((*_AUTHENTIC, Reason.MEASUREMENT, Reason.GUEST_FIRMWARE, Reason.NEVER_ACCEPTED),
                    (Reason.MEASUREMENT,), _BOOTED),
    "configuration": (
        (*_AUTHENTIC, Reason.PLATFORM, Reason.GUEST_POLICY, Reason.GUEST_ABI, Reason.VMPL, Reason.GUEST_SVN,
         Reason.FAMILY_ID, Reason.IMAGE_ID, Reason.HOST_DATA, Reason.ID_KEY, Reason.AUTHOR_KEY, Reason.REPORT_ID,
         Reason.REPORT_DATA, Reason.RUNTIME_CLAIMS),
        (Reason.REPORT_DATA,), _AFFIRMED,
    ),
    "runtime-opaque": ((*_AUTHENTIC, Reason.DEBUG_POLICY, Reason.MIGRATION_POLICY, Reason.MIGRATION_AGENT),
                       (Reason.DEBUG_POLICY, Reason.MIGRATION_POLICY), _AFFIRMED),
}  # fmt: skip
# A claim about one chip: if the policy names no chip, nothing is said.
_SAID_OF = {"instance-identity": Reason.ALLOWED_CHIP}


def ear_claims(appraisal: Appraisal, issued: datetime, nonce: bytes | None = None) -> dict[str, Any]:
    """The claims of an EAR about ``appraisal``; ``issued`` is when (aware), ``nonce`` the relying party's (32 bytes).

    A refusal is an EAR too, whose status is "contraindicated". The status of undecided evidence is "none".
    """
    vector = trustworthiness(appraisal.checks)
    attester = describe(appraisal.report) if appraisal.report else {}
    verifier = {
        "decision": appraisal.decision,
        "trust_domain": appraisal.trust_domain,
        "reason": str(appraisal.reason or ""),
        "message": appraisal.message,
        "appraised_at": f"{appraisal.at:%FT%TZ}",
        "checks": {str(check.name): check.outcome for check in appraisal.checks},
        "open": list(appraisal.residual_risks),
        "notes": list(appraisal.notes),
    }
    snp = {
        "ear_status": _status(appraisal, vector),
        **({"ear_trustworthiness_vector": vector} if vector else {}),
        "ear_appraisal_policy_ids": [f"openend2e-sevsnp:{appraisal.profile}"],
        **({"ear_attester_claims": attester} if attester else {}),
        "ear_verifier_claims": verifier,
    }
    return {
        "eat_profile": PROFILE,
        "iat": int(issued.timestamp()),
        "ear_status": snp["ear_status"],
        "ear_verifier_id": {"developer": _DISTRIBUTION, "build": _build()},
        **({"ear_raw_evidence": _base64url(appraisal.report.raw)} if appraisal.report else {}),
        **({"eat_nonce": _base64url(nonce)} if nonce else {}),
        "submods": {"snp": snp},
    }


def make_ear(
    appraisal: Appraisal, key: ec.EllipticCurvePrivateKey, issued: datetime, nonce: bytes | None = None
) -> str:
    """The EAR of :func:`ear_claims` as a JWT that ``key`` signs (ECDSA on P-256 or P-384).

    Raises :class:`UserError` for an appraisal of emulated evidence: an EAR has no word for that.
    """
    import jwt

    if appraisal.trust_domain != "amd":
        raise UserError("an EAR is about hardware, and this evidence is of a software secure processor")
    claims = ear_claims(appraisal, issued, nonce)
    return jwt.encode(claims, key, _ALGORITHMS[key.curve.name], headers={"typ": "eat+jwt"})


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a PEM file. Raises :class:`UserError` for another kind, and for one that others may read."""
    from sevsnp.keys.signature import load_signing_key

    key = load_signing_key(path)
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _ALGORITHMS:
        return key
    raise UserError(
        f"{path}: the key of an EAR: expected ECDSA on P-256 or P-384",
        "make one: (umask 077 && openssl ecparam -name secp384r1 -genkey -noout -out ear-key.pem)",
    )


def trustworthiness(checks: Iterable[Check]) -> dict[str, int]:
    """AR4SI's trustworthiness vector of an appraisal's checks; a claim about which nothing is known is not in it."""
    by_reason: dict[str, list[Check]] = {}
    for check in checks:
        by_reason.setdefault(check.reason_name, []).append(check)
    found = {}
    for claim, (reasons, needed, affirmed) in _CLAIMS.items():
        those = [check for reason in reasons for check in by_reason.get(reason, [])]
        said_of = by_reason.get(_SAID_OF[claim], []) if claim in _SAID_OF else those
        value = affirmed
        if any(check.outcome == "failed" for check in those):
            value = _AGAINST
        elif any(check.outcome == "not-reached" for check in those) or not any(
            check.outcome == "passed" for check in said_of
        ):
            value = _NOTHING
        elif any(check.outcome == "not-compared" for reason in needed for check in by_reason.get(reason, [])):
            value = _WARNED
        if value != _NOTHING:
            found[claim] = value
    return found


def _status(appraisal: Appraisal, vector: Mapping[str, int]) -> str:
    if appraisal.decision == "refused":
        return "contraindicated"
    if appraisal.decision == "undecided" or not vector:
        return "none"
    return "warning" if max(vector.values()) >= _WARNED else "affirming"


def _build() -> str:
    try:
        return f"{_DISTRIBUTION} {importlib.metadata.version(_DISTRIBUTION)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{_DISTRIBUTION}, a checkout"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
