# SPDX-License-Identifier: Apache-2.0
"""Reads .deb files: their fields, and their content as a stream."""

import contextlib
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sevsnp.archives.tar_reader import TAR_ERRORS, streamed
from sevsnp.errors import UserError
from sevsnp.system.command import DEFAULT_TIMEOUT, run, spawned


def read_field(deb: Path, name: str) -> str:
    """One field of a package's control file, empty if it has none.

    Raises :class:`UserError` for a file that is no .deb.
    """
    return read_control(deb, name).strip()


def read_control(deb: Path, *names: str) -> str:
    """A package's control file, or the named fields of it (for one name, only the value)."""
    if not deb.is_file():
        raise UserError(f"{deb}: no such file, expected a Debian package")
    try:
        return run(["dpkg-deb", "--field", deb, *names]).decode(errors="replace")
    except UserError as error:
        raise UserError(f"{deb}: not a Debian package: {error.message.splitlines()[0]}") from error


def member_path(name: str) -> PurePosixPath:
    """A tar member's path, relative and without dots. Raises ``ValueError`` for a path that leaves the tree."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(name)
    return path


@contextlib.contextmanager
def open_content(deb: Path) -> Iterator[tarfile.TarFile]:
    """A package's files as a tar stream. It is read once from front to back and never held whole in memory.

    dpkg-deb unpacks it, for every compression. Raises :class:`UserError` naming the file if it is damaged.
    """
    # Not sevsnp.system.command.run: it returns the output in memory, which would be 100 MB for a kernel.
    with spawned(
        ["dpkg-deb", "--fsys-tarfile", deb],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=DEFAULT_TIMEOUT,
        hint="run: apt-get install dpkg",
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            with streamed(process.stdout) as tar:
                yield tar
            # Padding follows the last member. If it is left unread, dpkg-deb dies of a closed pipe.
            while process.stdout.read(1 << 16):
                pass
        except TAR_ERRORS as error:
            process.kill()
            _, complaint = process.communicate()
            raise UserError(f"{deb}: damaged package: {_last_line(complaint) or error}") from error
        _, complaint = process.communicate()
        if process.returncode:
            raise UserError(f"{deb}: damaged package: {_last_line(complaint)}")


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
