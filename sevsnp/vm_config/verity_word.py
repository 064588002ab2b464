# SPDX-License-Identifier: Apache-2.0
"""dm-verity's parameters: the word that fixes the whole table on the measured command line."""

import hashlib
import re
from dataclasses import dataclass

from sevsnp.errors import UserError

BLOCK_SIZE = 4096
ALGORITHM = "sha256"
WORD = "sevsnp.verity"

_VALUE = re.compile(r"1:4096:4096:([1-9][0-9]{0,14}):(0|[1-9][0-9]{0,14}):sha256:([0-9a-f]{64}):([0-9a-f]{64})")


def fixed_salt(label: str) -> str:
    """The salt as 64 hex digits: SHA-256 of ``label``.

    A salt keeps one table of collisions from serving against many images. No collision of SHA-256 is known, and whoever
    attacks a guest reads its salt on the command line anyway, so a random one would only make every build another one.
    """
    return hashlib.sha256(f"openend2e-sevsnp verity salt:{label}".encode()).hexdigest()


@dataclass(frozen=True)
class VerityParameters:
    """The whole dm-verity table, apart from the two devices.

    ``data_blocks`` and ``hash_start`` count blocks of 4,096 bytes; ``hash_start`` is where the tree begins on the hash
    device (0: there is no superblock, which would be read from the host's disk before anything is verified).
    ``root_hash`` and ``salt`` are 64 lower-case hex digits.
    """

    data_blocks: int
    root_hash: str
    salt: str
    hash_start: int = 0

    def word(self) -> str:
        """The value of the measured word ``sevsnp.verity=``.

        Version, data and hash block size, data blocks, hash start, algorithm, root hash, salt: the fields of the
        kernel's table (Documentation/admin-guide/device-mapper/verity.rst) in its order, without the devices.
        """
        return (
            f"1:{BLOCK_SIZE}:{BLOCK_SIZE}:{self.data_blocks}:{self.hash_start}:{ALGORITHM}:{self.root_hash}:{self.salt}"
        )

    @classmethod
    def parse(cls, word: str) -> "VerityParameters":
        """The parameters in a value of ``sevsnp.verity=``. Raises UserError unless it is exactly of that form."""
        match = _VALUE.fullmatch(word)
        if not match:
            raise UserError(
                f"{WORD}={word}: expected 1:4096:4096:DATA_BLOCKS:HASH_START:sha256:ROOT_HASH:SALT",
                "root hash and salt are 64 lower-case hex digits each",
            )
        return cls(data_blocks=int(match[1]), hash_start=int(match[2]), root_hash=match[3], salt=match[4])
