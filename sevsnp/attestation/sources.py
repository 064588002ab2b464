# SPDX-License-Identifier: Apache-2.0
"""Certificates from the owner's directory first, and then from another endorser such as AMD's service."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509

from sevsnp.attestation.authentication import Endorser
from sevsnp.attestation.certificate_files import Contents, read_directory
from sevsnp.attestation.checklist import Unreachable
from sevsnp.attestation.extensions import Signer
from sevsnp.attestation.revocation import CrlError, Lists, newest_in_force, not_in_force, read_crl
from sevsnp.vm_config.config import Product, Tcb


@dataclass(frozen=True, eq=False)
class Directory:
    """An endorser that uses the certificates and revocation lists of a directory before those of ``behind``."""

    path: Path
    behind: Endorser
    contents: Contents = field(repr=False)

    @classmethod
    def read(cls, path: Path, behind: Endorser, say: Callable[[str], None] = lambda _: None) -> "Directory":
        """Read the directory ``path``, and ``say`` what was used and what was passed over, and why.

        Raises :class:`UserError` for a directory that cannot be read, and for one with too much in it.
        """
        contents = read_directory(path)
        for line in contents.describe(path):
            say(line)
        return cls(path, behind, contents)

    def known(self) -> list[x509.Certificate]:
        return [*self.contents.certificates, *self.behind.known()]

    def leaf(self, product: Product, chip_id: bytes, tcb: Tcb, now: datetime) -> x509.Certificate:
        try:
            return self.behind.leaf(product, chip_id, tcb, now)
        except Unreachable as error:
            raise Unreachable(f"{self.path} has no VCEK of this {product} chip and TCB version; {error}") from error

    def issuers(self, product: Product, signer: Signer, now: datetime) -> list[x509.Certificate]:
        try:
            return self.behind.issuers(product, signer, now)
        except Unreachable as error:
            lacking = "ASVK" if signer == "VLEK" else "ASK"
            raise Unreachable(f"{self.path} lacks {product}'s {lacking} or ARK; {error}") from error

    def revocation_lists(
        self, product: Product, signer: Signer, ark: x509.Certificate, now: datetime, demanded: bool
    ) -> Lists:
        """The directory's lists of ``ark``; the other endorser's too, unless one of the directory's is in force."""
        found, problem = [], f"{self.path} has no revocation list"
        for data in self.contents.lists:
            try:
                found.append(read_crl(data, ark))
            except CrlError as error:
                problem = f"{self.path}: a revocation list: {error}"
        if newest_in_force(found, now) is not None:
            return Lists(tuple(found))
        problem = next((f"{self.path}: a revocation list: {not_in_force(one, now)}" for one in found), problem)
        others = self.behind.revocation_lists(product, signer, ark, now, demanded)
        return Lists((*found, *others.found), others.problem and f"{problem}; {others.problem}")
