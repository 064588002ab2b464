"""What doitw finds on its PATH: a directory of the programs that it needs, and stand-ins."""

import os
import shutil
from pathlib import Path


class Tools:
    """A PATH of one directory with what doitw needs, and stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sh", "dirname", "readlink", "sha256sum", "cat", "mkdir", "rm", "mv", "flock", "env", "id"):
            found = shutil.which(name, path=os.defpath)
            assert found
            (folder / name).symlink_to(found)

    def add(self, name: str, text: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.folder / name).chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": str(self.folder)}
