# SPDX-License-Identifier: Apache-2.0
"""A disk image that was booted and used before, as IMAGE: end to end, as a verified and as an encrypted guest."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.e2e.guest import free_port
from sevsnp.system.command import run
from tests.conftest import Built
from tests.support.copies import copy_built
from tests.support.processes import ends_with_us
from tests.support.shared_guests import ssh_unchecked
from tests.support.waiting import NET, wait_until

pytestmark = [pytest.mark.boot, pytest.mark.full]

SECONDS = 600
# Writes a file, and prints the identity that the machine got at its first boot.
USE = "sudo sh -c 'echo kept >/root/kept && sync && cat /etc/machine-id'"


def use_once(built: Built, image: Path, output: Path) -> str:
    """Boot ``image`` by its own boot loader, write to it, and shut it down; its machine-id."""
    port = free_port()
    words = [
        f"IMAGE={image}",
        "NAME=booted-once",  # another test runs a plain guest of the same project meanwhile
        f"SSH_PORT={port}",
        f"ATTEST_PORT={free_port()}",
        "MEMORY=1G",
        "GUEST_NETWORK=restricted",
    ]
    with output.open("wb") as stream:
        process = subprocess.Popen(
            ends_with_us(sys.executable, "-m", "doit", "run_guest", *words),
            cwd=built.project,
            env=built.environment(),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:

            def used() -> str:
                assert process.poll() is None, output.read_text()
                return ssh_unchecked(built, port, USE).stdout.strip()

            machine_id = wait_until(used, what=output.read_text, net=SECONDS)
            ssh_unchecked(built, port, "sudo systemctl poweroff")
            assert process.wait(timeout=NET) == 0, output.read_text()
        finally:
            process.terminate()
            process.wait(timeout=NET)
    return machine_id


def test_an_image_that_was_booted_before_end_to_end(built: Built, tmp_path: Path) -> None:
    built.doit("create_new_vm")
    image = tmp_path / "used.qcow2"
    shutil.copyfile(built.build / "guest" / "sevsnptest.qcow2", image)
    machine_id = use_once(built, image, tmp_path / "output")
    assert len(machine_id) == 32
    copy = copy_built(built, tmp_path / "project")
    ports = (f"SSH_PORT={free_port()}", f"ATTEST_PORT={free_port()}")
    said = copy.doit("e2e", f"IMAGE={image}", "PLATFORM=emulated", "MEMORY=1G", *ports, DATA_DIR=str(tmp_path)).stdout
    assert "verity: shut down" in said and "luks: shut down" in said, said
    assert "/etc/machine-id" in said and "/etc/ssh/ssh_host_" in said, said

    def content(path: str) -> str:
        disk = copy.build / "verity" / "verity.img"
        return run([copy.tools / "debugfs", "-R", f"cat {path}", disk]).decode()

    assert content("/root/kept") == "kept\n"
    assert machine_id not in content("/etc/machine-id")
