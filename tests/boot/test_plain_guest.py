# SPDX-License-Identifier: Apache-2.0
"""The plain guest: its own disk and boot loader, or a direct boot. It is not measured; these are no security tests."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sevsnp.e2e.guest import free_port
from tests.conftest import Built
from tests.support.processes import ends_with_us
from tests.support.waiting import NET

SECONDS = 600


@pytest.mark.boot
@pytest.mark.parametrize(
    ("task", "banner"),
    [
        ("run_guest", False),
        pytest.param("run_sev_snp", True, marks=pytest.mark.full),
        pytest.param("run_sev_snp_direct_boot", True, marks=pytest.mark.full),
    ],
)
@pytest.mark.full
def test_the_plain_guest_boots_accepts_its_owner_and_powers_off(
    built: Built, task: str, banner: bool, tmp_path: Path
) -> None:
    image = built.build / "guest" / "sevsnptest.qcow2"
    before = image.stat().st_mtime_ns
    port = free_port()
    words = [f"SSH_PORT={port}", f"ATTEST_PORT={free_port()}", "MEMORY=1G", "PLATFORM=emulated"]
    output = tmp_path / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            ends_with_us(
                sys.executable, "-m", "doit", task, *words, "GUEST_NETWORK=restricted", f"CONFIG_DIR={built.config_dir}"
            ),
            cwd=built.project,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            assert "/dev/vda" in _ssh(built, "findmnt -no SOURCE / && sudo systemctl poweroff", process)
            assert process.wait(timeout=NET) == 0, output.read_text()
        finally:
            process.terminate()
            process.wait(timeout=NET)
    assert ("EMULATED – NOT CONFIDENTIAL" in output.read_text()) >= banner
    # The disk is a target of the build: a run must not change it.
    assert image.stat().st_mtime_ns == before


def _ssh(built: Built, command: str, process: "subprocess.Popen[bytes]") -> str:
    """What ``command`` prints in the guest, tried until the guest lets us in. Its host key is nobody's to vouch for."""
    config = built.build / "run" / "guest" / "ssh_config"
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        argv = ["ssh", "-F", str(config), "-o", "BatchMode=yes", "guest", command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=NET)
        if done.stdout:
            return done.stdout
        time.sleep(1)
    raise AssertionError(f"nobody let us in; QEMU's exit code {process.poll()}")
