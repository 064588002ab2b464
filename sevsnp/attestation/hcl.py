# SPDX-License-Identifier: Apache-2.0
"""Azure's HCL report: a hardware report, and the runtime claims (with the vTPM's key) whose hash is its REPORT_DATA.

Source: Microsoft's design of guest attestation for confidential VMs; OpenHCL's IGVM_ATTEST request. Layout, all
integers u32 little-endian: a header of 32 bytes that begins with HCLA, the hardware report in 1184 bytes, then size,
version, report type (2 SNP, 4 TDX), hash type (1 SHA-256, 2 SHA-384, 3 SHA-512) and the size of the claims (JSON).
"""

import hashlib
import struct
from typing import Any, NamedTuple

from sevsnp.attestation.checklist import Checklist
from sevsnp.attestation.outcome import Reason
from sevsnp.attestation.report import REPORT_SIZE, Report
from sevsnp.errors import UserError
from sevsnp.system.files import each_key_once

MAGIC = b"HCLA"
_HEADER = 32
_REQUEST = struct.Struct("<IIIII")  # size, version, report type, hash type, size of the claims
_SNP, _TDX = 2, 4
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
_MAX_CLAIMS = 64 << 10


class Claims(NamedTuple):
    """The runtime claims of an HCL report, raw, and the name of the hash (in hashlib) that REPORT_DATA has of them."""

    raw: bytes
    algorithm: str

    def bound(self) -> bytes:
        """The REPORT_DATA (64 bytes) that a report of these claims has."""
        return hashlib.new(self.algorithm, self.raw).digest().ljust(64, b"\0")

    def document(self) -> dict[str, Any]:
        """The claims as a document; empty if they are not a JSON object."""
        import json

        try:
            found = json.loads(self.raw, object_pairs_hook=each_key_once)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def read_hcl(data: bytes, name: str) -> tuple[bytes, Claims | None]:
    """The report (1184 bytes) in an HCL report, and its claims; None if the file ends after the hardware report.

    Raises :class:`UserError` for a TDX report, another hash, or claims that do not end within ``data``.
    """
    start = _HEADER + REPORT_SIZE
    if len(data) < start:
        raise UserError(f"{name}: an HCL report of {len(data)} bytes, expected at least {start}")
    report, rest = data[_HEADER:start], data[start:]
    if not any(rest):
        return report, None
    if len(rest) < _REQUEST.size:
        raise UserError(f"{name}: an HCL report of {len(data)} bytes, which ends inside the header of its claims")
    _, _, kind, hashed, size = _REQUEST.unpack_from(rest)
    if kind == _TDX:
        raise UserError(f"{name}: an HCL report with a TDX report inside, expected one of SEV-SNP")
    if kind != _SNP or hashed not in _HASHES:
        raise UserError(
            f"{name}: an HCL report of type {kind} with hash type {hashed}, expected 2 (SEV-SNP) with 1, 2 or 3"
        )
    if size > _MAX_CLAIMS or size > len(rest) - _REQUEST.size:
        raise UserError(f"{name}: an HCL report with {len(rest) - _REQUEST.size} bytes of claims, expected {size}")
    claims, after = rest[_REQUEST.size :][:size], rest[_REQUEST.size + size :]
    if any(after):
        raise UserError(f"{name}: an HCL report with {len(after)} bytes after its claims, expected zeros")
    return report, Claims(claims, _HASHES[hashed])


def check_claims(log: Checklist, report: Report, claims: Claims | None) -> None:
    """Check that REPORT_DATA is the hash of the claims: only then did the report's maker say them."""
    if claims is None:
        log.not_compared(Reason.RUNTIME_CLAIMS, "the evidence has no runtime claims; Azure's HCL reports have them")
        return
    log.require(
        Reason.RUNTIME_CLAIMS,
        claims.bound() == report.report_data,
        expected=f"REPORT_DATA {claims.bound().hex()}, the hash of the claims",
        found=report.report_data.hex(),
    )


def describe_claims(claims: Claims) -> dict[str, Any]:
    """What the claims say, and the SHA-256 of each key's modulus (RFC 7517 "n"), by which a vTPM's quote finds it."""
    import base64

    document = claims.document()
    keys = document.get("keys")
    shown: dict[str, Any] = {}
    for key in keys if isinstance(keys, list) else []:
        if isinstance(key, dict) and isinstance(key.get("kid"), str) and isinstance(key.get("n"), str):
            try:
                modulus = base64.urlsafe_b64decode(key["n"] + "=" * (-len(key["n"]) % 4))
            except ValueError:
                continue
            shown[key["kid"]] = {
                "type": str(key.get("kty", "")),
                "bits": str(8 * len(modulus)),
                "sha256_of_modulus": hashlib.sha256(modulus).hexdigest(),
            }
    return {"hash": claims.algorithm, "report_data": claims.bound().hex(), "keys": shown, "claims": document}
