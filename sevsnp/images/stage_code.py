# SPDX-License-Identifier: Apache-2.0
"""The stage's code: initramfs/stage/stage.c, built by the pinned compiler in a root of its own."""

from pathlib import Path

from sevsnp.images.compiler import PLACE, build_in_root
from sevsnp.system import progress
from sevsnp.system.command import temporary_directory

# Names in the root.
_SOURCES, _MADE = "stage", "stage.bin"
_TIMEOUT = 300.0  # seconds; it takes one


def make_stage_code(*, debs: Path, sources: Path, output: Path) -> None:
    """Write the code to ``output``, a flat file of some 1,100 bytes: the same on every machine.

    ``debs`` has the compiler's packages, ``sources`` is initramfs/stage. Takes a minute, nearly all of it for the
    installation of the compiler, and 600 MB in the temporary directory (TMPDIR). Reads nothing from the network. Raises
    :class:`UserError` for a failed build.
    """
    # Not beside the output: the namespace's root must have access to every directory above.
    with temporary_directory("stage.") as scratch:
        scratch.chmod(0o755)
        progress.step("installing the compiler and building the stage")
        code = build_in_root(
            debs=debs,
            scratch=scratch,
            content={_SOURCES: sources},
            interpreter="sh",
            script=f"{_SOURCES}/stage.sh",
            variables={"SOURCES": str(PLACE / _SOURCES), "OUT": str(PLACE / _MADE)},
            made=_MADE,
            timeout=_TIMEOUT,
        )
        output.write_bytes(code.read_bytes())
