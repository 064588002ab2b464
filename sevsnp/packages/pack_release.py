# SPDX-License-Identifier: Apache-2.0
"""Packs build/snp-release into one archive, which PACKAGES_SOURCE=release takes. The same tree gives the same bytes."""

from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.archives.tar_writer import write_tar
from sevsnp.packages.release_archive import TOP, check_release
from sevsnp.system import progress
from sevsnp.system.command import run
from sevsnp.system.files import scratch_directory, sha256_file, write_atomic

# The program that compresses, run by the tree's own Python: another version of zlib compresses to other bytes. With
# this mtime and an empty file name, the header is the same in every run.
_PACK = """\
import gzip, shutil, sys
with open(sys.argv[1], "rb") as plain, open(sys.argv[2], "wb") as packed:
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as stream:
        shutil.copyfileobj(plain, stream, 1 << 20)
"""
_SECONDS = 1800


def pack_release(*, release: Path, python: Path, output: Path) -> None:
    """Write the tree ``release`` to ``output`` (.tar.gz), and its SHA-256 beside it, for sha256sum -c.

    ``python`` is the Python of the tree. Entries are sorted, their times and owners are 0. Prints the digest, and the
    command that takes the archive. Raises :class:`UserError` for a tree that is not complete.
    """
    check_release(release, str(release))
    with scratch_directory(output) as scratch:
        plain, packed = scratch / "plain.tar", scratch / output.name
        write_tar(_entries(release), plain, epoch=0)
        with progress.growing(packed, 0, "packing"):
            run([python, "-I", "-c", _PACK, plain, packed], timeout=_SECONDS)
        packed.chmod(0o644)
        digest = sha256_file(packed)
        packed.replace(output)
    write_atomic(output.with_name(f"{output.name}.sha256"), f"{digest}  {output.name}\n")
    print(f"{output}: {output.stat().st_size} bytes, SHA-256 {digest}")
    settings = f"PACKAGES_SOURCE=release PACKAGES_RELEASE={quote(str(output))} PACKAGES_SHA256={digest}"
    print(f"to take build/snp-release from it: ./doitw packages {settings}")


def _entries(release: Path) -> Iterator[Entry]:
    yield Entry(TOP, Kind.DIRECTORY, 0o755)
    for path in sorted(release.rglob("*"), key=lambda path: path.relative_to(release).parts):
        name = f"{TOP}/{path.relative_to(release).as_posix()}"
        if path.is_symlink():
            yield Entry(name, Kind.SYMLINK, 0o777, target=str(path.readlink()))
        elif path.is_dir():
            yield Entry(name, Kind.DIRECTORY, 0o755)
        else:
            status = path.stat()
            # The path as inode: a hard link is packed as a file of its own.
            content = Content(status.st_size, (str(path), 0), path)
            yield Entry(name, Kind.FILE, 0o755 if status.st_mode & 0o100 else 0o644, content=content)
