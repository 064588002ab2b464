# SPDX-License-Identifier: Apache-2.0
"""Unpacks packages into one directory tree: without root, independent of the umask, never outside the tree."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from sevsnp.errors import UserError
from sevsnp.packages.deb import member_path, open_content

# Debian's merged /usr: packages write /lib and mean usr/lib.
MERGED = ("bin", "sbin", "lib", "lib64")

# What :func:`unpack_member` raises for an entry that has no place in the tree. RuntimeError: a loop of links.
ODD_ENTRY = (ValueError, OverflowError, RuntimeError, FileNotFoundError, FileExistsError, NotADirectoryError)

Keep = Callable[[PurePosixPath], bool]


def _place(name: str) -> PurePosixPath:
    path = member_path(name)
    return PurePosixPath("usr", path) if path.parts and path.parts[0] in MERGED else path


def _make_parents(root: Path, path: PurePosixPath) -> Path:
    """Make the parent directory of ``path`` with mode 0755; a symbolic link on the way must stay inside ``root``."""
    directory = root
    for part in path.parent.parts:
        directory = directory / part
        if directory.is_symlink():
            directory = directory.resolve()
            if not directory.is_relative_to(root):
                raise ValueError(path)
        if not directory.is_dir():
            directory.mkdir()
            directory.chmod(0o755)
    return directory / path.name


def _link_target(path: PurePosixPath, target: str) -> str:
    """A symbolic link's target; an absolute target becomes relative, because the tree's root is not the machine's."""
    if not target.startswith("/"):
        return target
    return os.path.relpath(f"/{_place(target.lstrip('/'))}", f"/{path.parent}")


def unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    """Put one tar member below ``root`` (an absolute path without symbolic links).

    Modes become 0755 or 0644, so owners, set-id bits and the umask have no effect. Later files replace earlier ones.
    """
    path = _place(member.name)
    if not path.parts:
        return
    target = _make_parents(root, path)
    if member.isdir():
        if not target.is_dir():
            target.mkdir()
            target.chmod(0o755)
        return
    if target.is_dir() and not target.is_symlink():
        raise ValueError(path)
    target.unlink(missing_ok=True)
    if member.issym():
        target.symlink_to(_link_target(path, member.linkname))
    elif member.islnk():
        source = root / _place(member.linkname)
        if not source.resolve().is_relative_to(root):
            raise ValueError(path)
        os.link(source, target)
    elif member.isfile():
        source_stream = tar.extractfile(member)
        assert source_stream is not None, member.name
        with target.open("xb") as stream:
            shutil.copyfileobj(source_stream, stream, 1 << 20)
        target.chmod(0o755 if member.mode & 0o111 else 0o644)
        os.utime(target, (member.mtime, member.mtime))
    else:
        raise ValueError(path)


def unpack_deb(deb: Path, root: Path, keep: Keep = lambda path: True) -> None:
    """Unpack those files of a package for which ``keep`` (given the path below the root) is true.

    Raises :class:`UserError` naming the package and the path of a file that would leave the tree, or that is not a
    plain file, directory or link.
    """
    root = root.resolve()
    with open_content(deb) as tar:
        for member in tar:
            try:
                if keep(_place(member.name)):
                    unpack_member(tar, member, root)
            except ODD_ENTRY as error:
                raise UserError(f"{deb}: {member.name}: expected a path below the root") from error
