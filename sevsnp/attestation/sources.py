# SPDX-License-Identifier: Apache-2.0
"""Certificates from the owner's directory first, and then from another endorser such as AMD's service."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509

from sevsnp.attestation.authentication import Endorser
from sevsnp.attestation.certificates import load_certificates
from sevsnp.attestation.checklist import Unreachable
from sevsnp.attestation.extensions import Signer
from sevsnp.attestation.revocation import CrlError, load_crl
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb

_CERTIFICATES, _LISTS = {".pem", ".der", ".crt", ".cer"}, {".crl"}
_MAX_FILES, _MAX_FILE = 256, 1 << 20


@dataclass(frozen=True, eq=False)
class Directory:
    """An endorser that uses the certificates and revocation lists of a directory before those of ``behind``."""

    behind: Endorser
    certificates: tuple[x509.Certificate, ...] = ()
    lists: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, path: Path, behind: Endorser) -> "Directory":
        """Read ``path``: .pem, .der, .crt and .cer are certificates, .crl are revocation lists. Ignore other files.

        Raises :class:`UserError` for a directory or file that cannot be read.
        """
        try:
            files = sorted(one for one in path.iterdir() if one.suffix.lower() in _CERTIFICATES | _LISTS)
            if len(files) > _MAX_FILES:
                raise UserError(f"{path}: {len(files)} certificates, expected at most {_MAX_FILES}")
            contents = [(one, _bounded(one)) for one in files]
        except OSError as error:
            raise UserError(f"{error.filename or path}: cannot read: {error.strerror}") from error
        found: list[x509.Certificate] = []
        for one, data in contents:
            if one.suffix.lower() in _CERTIFICATES:
                try:
                    found += load_certificates(data)
                except UserError as error:
                    raise UserError(f"{one}: {error.message}") from error
        lists = tuple(data for one, data in contents if one.suffix.lower() in _LISTS)
        return cls(behind, tuple(found), lists)

    def known(self) -> list[x509.Certificate]:
        return [*self.certificates, *self.behind.known()]

    def leaf(self, product: Product, chip_id: bytes, tcb: Tcb, now: datetime) -> x509.Certificate:
        return self.behind.leaf(product, chip_id, tcb, now)

    def issuers(self, product: Product, signer: Signer, now: datetime) -> list[x509.Certificate]:
        return self.behind.issuers(product, signer, now)

    def crl(
        self, product: Product, signer: Signer, ark: x509.Certificate, now: datetime
    ) -> x509.CertificateRevocationList:
        """The latest of the lists that the ARK signed and that are in force."""
        found = []
        problem = ""
        for data in self.lists:
            try:
                found.append(load_crl(data, ark, now))
            except CrlError as error:
                problem = f"; a revocation list of the directory: {error}"
        if found:
            return max(found, key=lambda one: one.last_update_utc)
        try:
            return self.behind.crl(product, signer, ark, now)
        except Unreachable as error:
            raise Unreachable(f"{error}{problem}") from error


def _bounded(path: Path) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise UserError(f"{path}: more than {_MAX_FILE} bytes")
    return data
