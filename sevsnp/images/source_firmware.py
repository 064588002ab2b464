# SPDX-License-Identifier: Apache-2.0
"""FIRMWARE=source: build our firmware from Debian's source of edk2, with the pinned compiler, in a root of its own.

A compiler is many programs that find each other, their headers and their libraries at fixed paths. So they are not run
in place like the other tools: mmdebstrap installs them into a new root, as it installs the guest's packages. It needs
no right that the guest's packages do not need. The bytes are the same on every machine.
"""

import shlex
import tarfile
from pathlib import Path, PurePosixPath

from sevsnp.firmware.source import TIMEOUT, check_made, prepare_tree, script_variables
from sevsnp.images.guest_packages import INSTALL_TIMEOUT, run_in_root
from sevsnp.system import progress
from sevsnp.system.command import temporary_directory

TABLE = "changes.yaml"
# The places in the new root.
_BUILD = PurePosixPath("/build")
_TREE, _WORK, _SCRIPT, _MADE = _BUILD / "edk2", _BUILD / "work", _BUILD / "ovmf.sh", _BUILD / "OVMF.fd"


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
        packed, made = scratch / "tree.tar", scratch / "made"
        _pack(scratch / "tree", script, packed)
        made.mkdir()
        variables = script_variables(_TREE, _WORK, _MADE, jobs)
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        progress.step("installing the compiler and building the firmware")
        run_in_root(
            debs,
            scratch,
            [
                f"tar-in {shlex.quote(str(packed))} /",
                f'chroot "$1" env -i PATH=/usr/bin:/usr/sbin {words} bash {_SCRIPT} >&2',
                f"copy-out {_MADE} {shlex.quote(str(made))}",
            ],
            timeout=INSTALL_TIMEOUT + TIMEOUT,
        )
        image = made / _MADE.name
        check_made(image)
        output.write_bytes(image.read_bytes())


def _pack(tree: Path, script: Path, output: Path) -> None:
    """The tar that is unpacked in the root: the source tree and the script, owned by its root."""

    def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(output, "w") as tar:
        tar.add(tree, str(_TREE).lstrip("/"), filter=owned)
        tar.add(script, str(_SCRIPT).lstrip("/"), filter=owned)
    output.chmod(0o644)  # the root of the namespace reads it
