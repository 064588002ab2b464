# SPDX-License-Identifier: Apache-2.0
"""A small image for a container engine: this machine's shell and core utilities, with the libraries that they load."""

import re
import shutil
import subprocess
import tarfile
from pathlib import Path

PROGRAMS = ("sh", "cat", "date", "env", "mkdir", "mv", "rm", "sleep", "timeout", "touch", "wc")


def make_rootfs(output: Path) -> None:
    """Write the image's file system as the tar ``output``."""
    with tarfile.open(output, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("tmp", "usr", "usr/bin", "build", "cache"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        link = tarfile.TarInfo("bin")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/bin"
        tar.addfile(link)
        added: set[str] = set()
        for name in PROGRAMS:
            found = shutil.which(name, path="/usr/bin:/bin")
            assert found, name
            _add(tar, Path(found).resolve(), f"usr/bin/{name}", added)
            listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=False).stdout
            for library in re.findall(r"(?:=> |^\s*)(/\S+)", listed, re.MULTILINE):
                # Where the loader looks for it, and the loader itself where the program names it.
                _add(tar, Path(library).resolve(), library.lstrip("/"), added)


def _add(tar: tarfile.TarFile, file: Path, name: str, added: set[str]) -> None:
    if name in added:
        return
    added.add(name)
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size = 0o755, file.stat().st_size
    with file.open("rb") as stream:
        tar.addfile(entry, stream)
