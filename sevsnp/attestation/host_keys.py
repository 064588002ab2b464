# SPDX-License-Identifier: Apache-2.0
"""The SSH host keys in a file: a public key file, the output of ssh-keyscan, or lines of known_hosts.

Source: sshd(8), "AUTHORIZED_KEYS FILE FORMAT" and "SSH_KNOWN_HOSTS FILE FORMAT".
"""

from sevsnp.attestation.report_data import read_public_key
from sevsnp.errors import UserError

_TYPES = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")


def read_host_keys(data: bytes, name: str) -> list[bytes]:
    """The key blobs in a file, each once; ``name`` names the file in errors.

    Comments are skipped, and the host names before a key. Raises :class:`UserError` for a line with a marker, such as
    ``@revoked``, because its key is not the host's own.
    """
    found: dict[bytes, None] = {}
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0].startswith("@"):
            raise UserError(f"{name}: line {number}: marker {words[0][:40]!a}, expected the key of a host")
        if len(words) > 2 and words[1].startswith(_TYPES):
            del words[0]  # the host's names, as ssh-keyscan writes them
        try:
            found[read_public_key(" ".join(words))] = None
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
    return list(found)
