# SPDX-License-Identifier: Apache-2.0
"""Measure one boot of a guest: the times until init starts, the verified root is open, and ssh logs in; and memory."""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from sevsnp.e2e.guest import ssh, wait_for_login
from sevsnp.errors import UserError
from sevsnp.host.console import read_console
from sevsnp.owner.attestation import attest_guest
from sevsnp.owner.client import NONCE_SIZE, ask
from sevsnp.qemu.platforms import Platform, running
from sevsnp.qemu.run_options import RunOptions
from sevsnp.vm_config.config import VmConfig

# Under emulation a copy of 2 GiB takes a minute on an idle machine, and longer on a busy one.
BOOT_SECONDS = 1800.0
_POLL = 0.02
# init's first line and its last line. The last line means: the root is open, its writable directories are ready, and
# systemd starts.
_MARKS = (("init", "init: mode "), ("root", "init: switching to the verified root"))


@dataclass(frozen=True)
class Login:
    """The login to the guests: the private key, the user, and the template of the ssh configuration."""

    identity: Path
    user: str
    template: Path


def boot_once(chosen: Platform, config: VmConfig, options: RunOptions, login: Login) -> dict[str, float]:
    """Boot a guest, log in through the attested channel, and end it.

    Returns the seconds from QEMU's start to ``init``, ``root`` and ``ssh``, and sizes in bytes: ``total`` and
    ``available`` memory, ``used`` (the difference), ``var_tmpfs`` (the contents of the tmpfs under /var) and ``var``
    (the contents of /var). QEMU's start is the moment at which it begins to run the guest. Under emulation QEMU first
    waits until the software secure processor has made its keys, which takes a random time: ``paused``.
    """
    shutil.rmtree(options.state, ignore_errors=True)
    before = time.monotonic()
    with running(chosen, config.launch, options) as process:
        start = time.monotonic()
        taken = {"paused": round(start - before, 3)}
        deadline = start + BOOT_SECONDS
        for name, line in _MARKS:
            wait_for_line(process, options.serial_log, line, deadline)
            taken[name] = round(time.monotonic() - start, 3)
        _wait_for_agent(process, options, deadline)
        attest_guest(
            vm_config=config.source,
            host="127.0.0.1", port=options.attest_port, ssh_port=options.ssh_port,
            emulated_root=options.state / "ark.pem",
            identity=login.identity, user=login.user, template=login.template, output=options.state,
        )  # fmt: skip
        wait_for_login(options.state / "ssh_config")
        taken["ssh"] = round(time.monotonic() - start, 3)
        return {**taken, **look_inside(options.state / "ssh_config", config)}


def wait_for_line(process: "subprocess.Popen[bytes]", log: Path, line: str, deadline: float) -> None:
    """Wait until the console's ``log`` has ``line``. Raises UserError if QEMU ends, or at ``deadline`` (monotonic)."""
    while True:
        ended = process.poll() is not None  # before reading the log, so that QEMU's last lines are read too
        text = read_console(log)
        if line in text:
            return
        if ended:
            raise UserError(f"the guest ended before {line!r} (exit code {process.returncode})\n{text[-2000:]}")
        if time.monotonic() > deadline:
            raise UserError(f"no {line!r} on the console in {BOOT_SECONDS:.0f} s\n{text[-2000:]}")
        time.sleep(_POLL)


def _wait_for_agent(process: "subprocess.Popen[bytes]", options: RunOptions, deadline: float) -> None:
    """Wait until the agent answers; the measured time is accurate to 2 %.

    QEMU's user network accepts a connection before the guest has an address, and then the connection hangs for seconds.
    So the attempts are short. They become longer with time, because a slow guest may need longer for its answer.
    """
    start = time.monotonic()
    while True:
        try:
            ask("127.0.0.1", options.attest_port, os.urandom(NONCE_SIZE), timeout=0.4 + (time.monotonic() - start) / 60)
            return
        except UserError as error:
            log = options.serial_log.read_text(errors="replace")[-2000:]
            if process.poll() is not None:
                raise UserError(f"the guest ended before it answered (exit code {process.returncode})\n{log}") from None
            if time.monotonic() > deadline:
                raise UserError(f"no evidence in {BOOT_SECONDS:.0f} s: {error.message}\n{log}") from None
        time.sleep(_POLL)


_LOOK = r"""
systemctl is-system-running --wait >/dev/null
sed -n 's/^MemTotal: *\([0-9]*\) kB$/total=\1/p; s/^MemAvailable: *\([0-9]*\) kB$/available=\1/p' /proc/meminfo
echo "var_tmpfs=$(df --block-size=1K --output=used /var | tail -n 1 | tr -d ' ')"
echo "var=$(sudo du --summarize --apparent-size --block-size=1K /var | cut -f 1)"
echo "type=$(findmnt -no FSTYPE /var)"
"""


def look_inside(ssh_config: Path, config: VmConfig) -> dict[str, float]:
    """Memory in bytes in a guest that has finished starting. For an overlay, df shows the tmpfs below it."""
    found = dict(re.findall(r"^([a-z_]+)=(\w+)$", ssh(ssh_config, f"sh -c '{_quoted(_LOOK)}'", 600.0), re.MULTILINE))
    wanted = "overlay" if "sevsnp.writable=overlay" in config.launch.cmdline.path.read_text().split() else "tmpfs"
    if found.pop("type", None) != wanted or set(found) != {"total", "available", "var_tmpfs", "var"}:
        raise UserError(f"in the guest: found {found} and not all of its memory, or /var is no {wanted}")
    numbers = {name: int(value) * 1024 for name, value in found.items()}
    return {**numbers, "used": numbers["total"] - numbers["available"]}


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''")
