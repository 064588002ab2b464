# SPDX-License-Identifier: Apache-2.0
"""The emulated verifier: the production verifier's checks under the root of one software secure processor.

Its verdict is another type, and proves nothing about confidentiality.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from cryptography.hazmat.primitives import hashes

from sevsnp.attestation.appraisal import Appraisal, Evidence, Expected, appraise
from sevsnp.attestation.certificates import load_certificates
from sevsnp.attestation.chain import TrustRoot
from sevsnp.attestation.outcome import Accepted
from sevsnp.emulation.mark import EMULATION_OID
from sevsnp.errors import UserError

_TOKEN = object()


@dataclass(frozen=True, init=False)
class EmulatedVerdict(Accepted):
    """The verdict that a software secure processor runs the expected guest. Only :func:`verify_emulated` makes one."""

    def __init__(self, appraisal: Appraisal, token: object) -> None:
        if token is not _TOKEN:
            raise TypeError("an EmulatedVerdict comes from verify_emulated only")
        super().__init__(appraisal)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("EmulatedVerdict has no subclasses")

    def to_json(self) -> dict[str, Any]:
        """For programs: ``accepted`` means real hardware and stays false; ``accepted_as_emulated`` is true."""
        return {**self.appraisal.to_json(), "accepted": False, "accepted_as_emulated": True}


def appraise_emulated(evidence: Evidence, expected: Expected, now: datetime, root: Path) -> Appraisal:
    """Appraise emulated evidence at the time ``now`` (aware) under the certificate in the PEM file ``root``.

    Never raises for evidence. Raises :class:`UserError` if ``root`` is not the ARK of one software secure processor.
    """
    return appraise(evidence, expected, now, read_root(root))


def verify_emulated(evidence: Evidence, expected: Expected, now: datetime, root: Path) -> EmulatedVerdict:
    """Appraise emulated evidence at the time ``now`` (aware) under the certificate in the PEM file ``root``.

    Raises Refused, and :class:`UserError` if ``root`` is not the ARK of one software secure processor.
    """
    return EmulatedVerdict(appraise_emulated(evidence, expected, now, root), _TOKEN)


def read_root(path: Path) -> TrustRoot:
    """The trust root in the PEM file ``path``: the ARK of one software secure processor. Raises :class:`UserError`."""
    hint = "give the ark.pem that the software secure processor wrote when the guest was started"
    try:
        found = load_certificates(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read the emulated root: {error.strerror}", hint) from error
    except UserError as error:
        raise UserError(f"{path}: {error.message}", hint) from error
    try:
        marked = len(found) == 1 and any(
            one.critical and one.oid.dotted_string == EMULATION_OID for one in found[0].extensions
        )
    except ValueError as error:
        raise UserError(f"{path}: unreadable extensions: {error}", hint) from error
    if not marked:
        raise UserError(f"{path}: expected one certificate with the emulation's mark", hint)
    return TrustRoot(
        domain="emulated",
        platform="emulated",
        pins=((found[0].fingerprint(hashes.SHA256()), None),),
        required_extensions=frozenset({EMULATION_OID}),
    )
