# SPDX-License-Identifier: Apache-2.0
"""The owner's sources of the certificates that a guest's evidence lacks: settings of `attest_*`.

A module apart from the verifier: doit makes these sources for each attesting task, in every command.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sevsnp.errors import UserError

if TYPE_CHECKING:
    from sevsnp.attestation.authentication import Endorser


@dataclass(frozen=True)
class CertificateSources:
    """``mirror`` is the URL of a mirror of AMD's service, empty for the service itself; ``directory`` comes before it.

    ``offline`` uses only the directory and the user's cache. Nothing of all that is trusted.
    """

    mirror: str = ""
    directory: Path | None = None
    offline: bool = False

    def endorser(self) -> "Endorser":
        """The endorser that asks these sources. Raises :class:`UserError` for a directory that cannot be read."""
        from sevsnp.attestation.sources import Directory
        from sevsnp.attestation.verifier import amd_service

        service = amd_service(self.mirror or None, self.offline)
        if self.directory is None:
            return service
        try:
            return Directory.read(self.directory, service, print)
        except UserError as error:
            raise UserError(f"CERTS={self.directory}: {error.message}") from error
