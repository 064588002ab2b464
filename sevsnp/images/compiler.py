# SPDX-License-Identifier: Apache-2.0
"""Runs a build in a root of its own, made of the pinned compiler's packages, with no network and an empty environment.

A compiler is many programs that find each other, their headers and their libraries at fixed paths. So they are not run
in place like the other tools: mmdebstrap installs them into a new root, as it installs the guest's packages. It needs
no right that the guest's packages do not need. The bytes are the same on every machine.
"""

import shlex
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from sevsnp.images.guest_packages import INSTALL_TIMEOUT, run_in_root

# The place of everything in the new root.
PLACE = PurePosixPath("/build")


def build_in_root(
    *,
    debs: Path,
    scratch: Path,
    content: Mapping[str, Path],
    interpreter: str,
    script: str,
    variables: Mapping[str, str],
    made: str,
    timeout: float,
) -> Path:
    """Install the packages ``debs``, run ``script`` there with ``interpreter``, and return the file ``made`` outside.

    ``content`` has what lies in the root, by its name below PLACE: files, or directories with all that is in them;
    ``script`` and ``made`` are such names too. ``variables`` are the whole environment beside PATH. ``timeout`` is the
    time of the script in seconds. ``scratch`` is a directory that other users may enter; it receives everything. Raises
    :class:`UserError`.
    """
    packed, results = scratch / "content.tar", scratch / "made"
    _pack(content, packed)
    results.mkdir()
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    run_in_root(
        debs,
        scratch,
        [
            f"tar-in {shlex.quote(str(packed))} /",
            f'chroot "$1" env -i PATH=/usr/bin:/usr/sbin {words} {interpreter} {PLACE / script} >&2',
            f"copy-out {PLACE / made} {shlex.quote(str(results))}",
        ],
        timeout=INSTALL_TIMEOUT + timeout,
    )
    return results / PurePosixPath(made).name


def _pack(content: Mapping[str, Path], output: Path) -> None:
    """The tar that is unpacked in the root; its root owns everything."""

    def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(output, "w") as tar:
        for name, path in content.items():
            tar.add(path, str(PLACE / name).lstrip("/"), filter=owned)
    output.chmod(0o644)  # the root of the namespace reads it
