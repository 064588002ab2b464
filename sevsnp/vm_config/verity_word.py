# SPDX-License-Identifier: Apache-2.0
"""dm-verity's parameters, and the word of the measured command line that fixes the whole table."""

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

    The purpose of a salt is that one table of collisions does not work against many images. No collision of SHA-256 is
    known, and an attacker can read a guest's salt on the command line. So a random salt would only make each build
    differ.
    """
    return hashlib.sha256(f"openend2e-sevsnp verity salt:{label}".encode()).hexdigest()


@dataclass(frozen=True)
class VerityParameters:
    """The whole dm-verity table, apart from the two devices.

    ``data_blocks`` and ``hash_start`` count blocks of 4,096 bytes. ``hash_start`` is the start of the tree on the hash
    device. 0 means that the device has no superblock, which the guest would read from the host's disk before it
    verifies anything. ``root_hash`` and ``salt`` are 64 lower-case hex digits.
    """

    data_blocks: int
    root_hash: str
    salt: str
    hash_start: int = 0

    def word(self) -> str:
        """The value of the measured word ``sevsnp.verity=``.

        It has the fields of the kernel's table (Documentation/admin-guide/device-mapper/verity.rst) in the same order,
        without the devices: version, data and hash block size, data blocks, hash start, algorithm, root hash, salt.
        """
        return (
            f"1:{BLOCK_SIZE}:{BLOCK_SIZE}:{self.data_blocks}:{self.hash_start}:{ALGORITHM}:{self.root_hash}:{self.salt}"
        )

    @classmethod
    def parse(cls, word: str) -> "VerityParameters":
        """The parameters in a value of ``sevsnp.verity=``. Raises UserError unless it has exactly that form."""
        match = _VALUE.fullmatch(word)
        if not match:
            raise UserError(
                f"{WORD}={word}: expected 1:4096:4096:DATA_BLOCKS:HASH_START:sha256:ROOT_HASH:SALT",
                "root hash and salt are 64 lower-case hex digits each",
            )
        return cls(data_blocks=int(match[1]), hash_start=int(match[2]), root_hash=match[3], salt=match[4])
