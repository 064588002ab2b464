# SPDX-License-Identifier: Apache-2.0
"""dm-verity: makes the hash tree of an image twice and compares the results."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.images.hash_tree import hash_tree as expected_tree
from sevsnp.system import progress
from sevsnp.system.command import run
from sevsnp.system.time_limits import seconds_for
from sevsnp.vm_config.verity_word import ALGORITHM, BLOCK_SIZE, VerityParameters


def make_verity(image: Path, hash_tree: Path, root_hash: Path, *, salt: str, tools: Path) -> VerityParameters:
    """Write the hash tree of ``image`` to ``hash_tree`` and the root hash, with a newline, to ``root_hash``.

    ``salt`` is 64 lower-case hex digits. Raises UserError for an image that is empty or not a whole number of blocks,
    and if veritysetup's tree differs from the one that this program computes itself.
    """
    size = image.stat().st_size
    if not size or size % BLOCK_SIZE:
        raise UserError(f"{image}: {size} bytes, expected a positive multiple of {BLOCK_SIZE}")
    if not re.fullmatch("[0-9a-f]{64}", salt):
        raise UserError(f"verity salt {salt!r}: expected 64 lower-case hex digits")
    hash_tree.unlink(missing_ok=True)
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        # Made twice at the same time, by two independent programs.
        ours = pool.submit(expected_tree, image, bytes.fromhex(salt), stopped)
        try:
            # A block of digests for each 128 blocks, and the levels above.
            with progress.growing(hash_tree, size // 127, "hashing"):
                output = run(
                    [tools / "veritysetup", "format", *_options(salt, size // BLOCK_SIZE), image, hash_tree],
                    timeout=seconds_for(size),
                )
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
    hash_tree.chmod(0o644)  # veritysetup makes it readable for its user only, but it is as public as the image
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
