# SPDX-License-Identifier: Apache-2.0
"""The owner's certificate as the measured values need it."""

from pathlib import Path

from sevsnp.store.recipe import recipe_digest
from sevsnp.store.session import index

_READER = "sevsnp.keys.pairs"


def owner_der(certificate: Path) -> bytes:
    """The same result and errors as :func:`sevsnp.keys.pairs.certificate_der`, remembered by the file's digest.

    A build needs cryptography's X.509 modules for nothing else, and it is quicker without loading them.
    """

    def read() -> str:
        from sevsnp.keys.pairs import certificate_der

        return certificate_der(certificate).hex()

    try:
        return bytes.fromhex(index().memo_of(certificate, f"certificate:{recipe_digest(_READER)}", read))
    except OSError:
        return bytes.fromhex(read())  # it raises the proper error
