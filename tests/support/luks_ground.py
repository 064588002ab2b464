# SPDX-License-Identifier: Apache-2.0
"""A copy of the project for making encrypted volumes: with a small root, and its own keys, cache, home and TMPDIR."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sevsnp.archives.rootfs import EPOCH, directory_entry, link_entry, text_entry
from sevsnp.archives.tar_writer import write_tar
from tests.conftest import Built
from tests.support.copies import copy_built

# With such a small file system, the start of the appliance takes most of the time.
FREE = "16M"
SECONDS = 900
OUTPUTS = ("luks.img", "header.bin", "header.sha256", "tables.sha256")


@dataclass(frozen=True)
class Ground:
    """The copy and its directories; ``words`` are settings that make the small volume."""

    built: Built
    base: Path

    @property
    def project(self) -> Path:
        return self.built.project

    @property
    def luks(self) -> Path:
        return self.built.build / "luks"

    @property
    def temporary(self) -> Path:
        return self.base / "temporary"

    @property
    def words(self) -> list[str]:
        return ["setup_luks", f"IMAGE={self.base / 'root.tar'}", f"LUKS_FREE={FREE}"]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("LUKS_KEY", "SEVSNP_LUKS_KEY_FD")}
        return {
            **kept,
            "CONFIG_DIR": str(self.built.config_dir),
            "SEVSNP_CACHE": str(self.base / "cache"),
            "DATA_DIR": str(self.base / "data"),
            "TMPDIR": str(self.temporary),
            "HOME": str(self.base / "home"),
        }

    def doitw(self, *words: str, key: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run doitw to its end, as a user would."""
        return subprocess.run(
            [self.project / "doitw", *words],
            env={**self.environment, **({"LUKS_KEY": key} if key is not None else {})},
            cwd=self.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def living(self) -> list[str]:
        """The processes that belong here: those with one of its directories in their environment or arguments."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            seen = b""
            for name in ("cmdline", "environ"):
                try:
                    seen += (entry / name).read_bytes()
                except OSError:
                    continue  # it has ended, or is another user's
            if str(self.base).encode() in seen and int(entry.name) != os.getpid():
                found.append(f"{entry.name}: {seen[:200]!r}")
        return found

    def leavings(self) -> list[Path]:
        """Scratch files that a run left in build/ or in TMPDIR."""
        hidden = [path for path in self.built.build.rglob(".*") if path.name not in (".gitignore", ".ci")]
        return [*hidden, *self.temporary.iterdir()]


@contextmanager
def make_ground(built: Built, base: Path) -> Iterator[Ground]:
    """A copy in which everything but a volume is built; all of it is removed at the end."""
    shutil.copytree(built.config_dir, base / "config", ignore=shutil.ignore_patterns("volumes"))
    (base / "config").chmod(0o700)
    ground = Ground(Built(copy_built(built, base / "project").project, base / "config"), base)
    shutil.rmtree(ground.luks, ignore_errors=True)
    for name in ("home", "temporary"):
        (base / name).mkdir()
    write_small_root(base / "root.tar")
    make_venv(ground.project)
    done = ground.doitw("_appliance_initramfs", "initramfs", "_emulated_initramfs")
    assert done.returncode == 0, done.stdout
    try:
        yield ground
    finally:
        shutil.rmtree(base, ignore_errors=True)


def write_small_root(path: Path) -> None:
    """A tree that counts as a root, with some data to compare."""
    entries = [
        *(directory_entry(name) for name in ("etc", "sbin", "usr", "usr/lib")),
        text_entry("etc/os-release", "ID=small\n"),
        link_entry("sbin/init", "../usr/lib/init"),
        text_entry("usr/lib/init", os.urandom(1 << 20), mode=0o755),
    ]
    write_tar(sorted(entries, key=lambda entry: entry.name), path, epoch=EPOCH)


def make_venv(project: Path) -> None:
    """A .venv that doitw accepts as its own: the packages of the Python that runs the tests."""
    venv = project / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix) / 'bin'}\n")
    (venv / "lib").symlink_to(Path(sys.prefix) / "lib")
    (venv / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    doit = venv / "bin" / "doit"
    # As pip writes it: the kernel ends the path of an interpreter at a blank.
    start = f"""#!/bin/sh
'''exec' "{venv / "bin" / "python"}" "$0" "$@"
' '''
"""
    doit.write_text(f"{start}import sys\n\nfrom doit.__main__ import main\n\nsys.exit(main())\n")
    doit.chmod(0o755)
    lock = subprocess.run(
        ["sh", "-c", "sha256sum <requirements.lock"], cwd=project, capture_output=True, text=True, check=True
    )
    stamp = f"1 {lock.stdout.rstrip()} {(venv / 'bin' / 'python').resolve()} {project}"
    (venv / ".doitw-stamp").write_text(stamp + "\n")
