"""dm-verity: the hash tree of an image, and the word that fixes all of it on the measured command line."""

import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sevsnp import progress
from sevsnp.command import run
from sevsnp.errors import UserError
from sevsnp.images.hash_tree import BLOCK_SIZE
from sevsnp.images.hash_tree import hash_tree as expected_tree

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


def make_verity(image: Path, hash_tree: Path, root_hash: Path, *, salt: str, tools: Path) -> VerityParameters:
    """Write the hash tree of ``image`` to ``hash_tree`` and the root hash, with a newline, to ``root_hash``.

    ``salt`` is 64 lower-case hex digits. Raises UserError for an image that is empty or not a whole number of blocks,
    and where veritysetup's tree is not the one that we compute ourselves.
    """
    size = image.stat().st_size
    if not size or size % BLOCK_SIZE:
        raise UserError(f"{image}: {size} bytes, expected a positive multiple of {BLOCK_SIZE}")
    if not re.fullmatch("[0-9a-f]{64}", salt):
        raise UserError(f"verity salt {salt!r}: expected 64 lower-case hex digits")
    hash_tree.unlink(missing_ok=True)
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        # Made twice at once, by two programs that have nothing in common.
        ours = pool.submit(expected_tree, image, bytes.fromhex(salt), stopped)
        try:
            # A block of digests for each 128 blocks, and the levels above.
            with progress.growing(hash_tree, size // 127, "hashing"):
                output = run([tools / "veritysetup", "format", *_options(salt, size // BLOCK_SIZE), image, hash_tree])
        except BaseException:
            stopped.set()
            raise
        progress.step("checking")
        expected = ours.result()
    match = re.search(r"^Root hash:\s*([0-9a-f]{64})$", output.decode(), re.MULTILINE)
    if not match:
        raise UserError(f"veritysetup format printed no root hash for {image}: {output.decode().strip()[-500:]}")
    if match[1] != expected.root_hash.hex():
        raise UserError(f"{image.name}: root hash {match[1]} by veritysetup, expected {expected.root_hash.hex()}")
    expected.check(hash_tree)
    hash_tree.chmod(0o644)  # veritysetup makes it for its user only, and it is as public as the image
    root_hash.write_text(f"{match[1]}\n")
    return VerityParameters(data_blocks=size // BLOCK_SIZE, root_hash=match[1], salt=salt)


def _options(salt: str, data_blocks: int) -> list[str]:
    return [
        "--no-superblock",
        "--format=1",
        f"--hash={ALGORITHM}",
        f"--data-block-size={BLOCK_SIZE}",
        f"--hash-block-size={BLOCK_SIZE}",
        f"--data-blocks={data_blocks}",
        f"--salt={salt}",
    ]
