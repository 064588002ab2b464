# SPDX-License-Identifier: Apache-2.0
"""Data that a guest wrote is there at its next boot, also after changes in build/: with the printed commands."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevsnp.e2e.guest import free_port, ssh, wait_for_login
from sevsnp.keys.luks_key import read_record
from tests.conftest import Built
from tests.support.copies import copy_with_keys, one_line
from tests.support.harness import BOOT_SECONDS
from tests.support.processes import ends_with_us
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.boot, pytest.mark.full]

WAITING = "init: waiting for the disk key"
END_SECONDS = 300


@dataclass(frozen=True)
class Owner:
    """A checkout in which everything was built, with keys and volumes of its own."""

    built: Built
    data_dir: Path

    def doit(self, *words: str, check: bool = True) -> str:
        done = self.built.doit(*words, check=False, DATA_DIR=str(self.data_dir))
        assert not check or done.returncode == 0, done.stdout
        return str(done.stdout)

    @contextlib.contextmanager
    def running(self, command: str, workflow: str = "luks") -> Iterator[Path]:
        """`./doitw` with this command, and the guest attested and open; gives its ssh configuration."""
        ssh_port, attest_port = free_port(), free_port()
        ports = [f"SSH_PORT={ssh_port}", f"ATTEST_PORT={attest_port}"]
        words = [*command.split(), *ports, "PLATFORM=emulated", "GUEST_NETWORK=restricted", "MEMORY=1G"]
        console, said = self.built.build / "run" / workflow / "serial.log", self.data_dir.parent / "said"
        console.unlink(missing_ok=True)
        with said.open("wb") as stream:
            process = subprocess.Popen(
                ends_with_us(sys.executable, "-m", "doit", *words),
                cwd=self.built.project,
                env=self.built.environment(DATA_DIR=str(self.data_dir)),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:

            def waits() -> bool:
                assert process.poll() is None, said.read_text(errors="replace")
                return console.exists() and WAITING in console.read_text(errors="replace")

            wait_until(waits, what=lambda: said.read_text(errors="replace"), net=BOOT_SECONDS)
            # The VOLUME that was asked for, if one was.
            chosen = [word for word in command.split() if word.startswith("VOLUME=")]
            self.doit(f"attest_{workflow}", *ports, "PLATFORM=emulated", *chosen)
            config = self.built.build / "run" / workflow / "ssh_config"
            wait_for_login(config, BOOT_SECONDS)
            yield config
            ssh(config, "sudo systemctl poweroff || true")
            process.wait(END_SECONDS)
            assert process.returncode == 0, said.read_text(errors="replace")
        finally:
            process.terminate()
            process.wait(END_SECONDS)


@contextlib.contextmanager
def new_owner(built: Built, directory: Path) -> Iterator[Owner]:
    """An owner in ``directory``; the checkout and the volumes are removed at the end."""
    yield Owner(copy_with_keys(built, directory), directory / "data")
    for name in ("project", "data"):
        shutil.rmtree(directory / name, ignore_errors=True)


@pytest.fixture
def owner(built: Built, tmp_path: Path) -> Iterator[Owner]:
    with new_owner(built, tmp_path) as one:
        yield one


def printed(output: str, task: str) -> str:
    """The one command of ``task`` that is printed there, without ./doitw."""
    (found,) = set(re.findall(rf"\./doitw ({task} \S+)", output))
    return str(found)


def test_a_file_is_still_there_after_clean(owner: Owner) -> None:
    with owner.running("run_sev_snp_luks") as config:
        ssh(config, "sudo sh -c 'echo kept > /root/kept && sync'")
    (volume,) = (owner.data_dir / "volumes").iterdir()
    said = owner.doit("clean")
    assert not (owner.built.build / "luks" / "luks.img").exists() and not (owner.built.build / "snp-release").exists()
    command = printed(said, "run_sev_snp_luks")
    assert command == f"run_sev_snp_luks VOLUME={volume.name}"
    with owner.running(command) as config:
        assert ssh(config, "sudo cat /root/kept").strip() == "kept"
        # Another guest on the same disk, meanwhile.
        refusal = one_line(owner.doit("run_sev_snp_luks", f"VOLUME={volume.name[:4]}", "NAME=other", check=False))
        assert re.search(rf"volume {volume.name}: in use by process \d+ since", refusal)
    assert read_record(owner.built.config_dir, volume.name).generation == 2
    # Control: the disk alone, where an earlier release left it, is not enough; and then what is printed brings it back.
    earlier = owner.built.build / "run" / "luks" / "luks.img"
    shutil.move(volume / "luks.img", earlier)
    shutil.rmtree(volume)
    assert "no volume, neither in build/luks nor in" in owner.doit("run_sev_snp_luks", check=False)
    adopt = printed(owner.doit("clean"), "adopt_luks")
    before = earlier.stat().st_mtime_ns
    command = printed(owner.doit(*adopt.split()), "run_sev_snp_luks")
    assert earlier.stat().st_mtime_ns == before
    with owner.running(command) as config:
        assert ssh(config, "sudo cat /root/kept").strip() == "kept"
    assert read_record(owner.built.config_dir, volume.name).generation == 3
