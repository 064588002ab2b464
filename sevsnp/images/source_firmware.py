# SPDX-License-Identifier: Apache-2.0
"""FIRMWARE=source: build our firmware from Debian's source of edk2, with the pinned compiler, in a root of its own."""

from pathlib import Path

from sevsnp.firmware.source import TIMEOUT, check_made, prepare_tree, script_variables
from sevsnp.images.compiler import PLACE, build_in_root
from sevsnp.system import progress
from sevsnp.system.command import temporary_directory

TABLE = "changes.yaml"
# Names in the root.
_TREE, _WORK, _SCRIPT, _MADE = "edk2", "work", "ovmf.sh", "OVMF.fd"


def make_source_firmware(
    *, sources: Path, debs: Path, changes: Path, script: Path, output: Path, jobs: int = 0
) -> None:
    """Write our firmware to ``output``: the same bytes on every machine.

    ``sources`` has edk2's source archives, ``debs`` the compiler's packages, ``changes`` the table of changes and our
    own files (templates/firmware); ``script`` is templates/packages/ovmf.sh. ``jobs`` is the number of compilers at
    once, 0 for one per CPU. Takes three CPU minutes, and 2 GB in the temporary directory (TMPDIR). Reads nothing from
    the network. Raises :class:`UserError` for a source that is not as the table expects it, for a failed build, and for
    a result that is not the pinned one.
    """
    # Not beside the output: the namespace's root must have access to every directory above.
    with temporary_directory("firmware.") as scratch:
        scratch.chmod(0o755)
        progress.step("preparing the firmware's source")
        prepare_tree(sources=sources, changes=changes / TABLE, output=scratch / "tree")
        progress.step("installing the compiler and building the firmware")
        image = build_in_root(
            debs=debs,
            scratch=scratch,
            content={_TREE: scratch / "tree", _SCRIPT: script},
            interpreter="bash",
            script=_SCRIPT,
            variables=script_variables(PLACE / _TREE, PLACE / _WORK, PLACE / _MADE, jobs),
            made=_MADE,
            timeout=TIMEOUT,
        )
        check_made(image)
        output.write_bytes(image.read_bytes())
