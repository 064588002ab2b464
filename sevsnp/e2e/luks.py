# SPDX-License-Identifier: Apache-2.0
"""The encrypted workflow end to end: the guest waits, is verified, gets its key, and is inspected from inside."""

import json
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sevsnp.e2e.guest import BOOT_SECONDS, Attempt, accepted_as, ssh, wait_for_login
from sevsnp.errors import UserError
from sevsnp.host.console import WAITING, boot_stage, read_console
from sevsnp.images.luks2 import Luks2
from sevsnp.keys.luks_key import Record, write_record
from sevsnp.owner.key_release import is_waiting
from sevsnp.owner.luks import attest_luks
from sevsnp.system import progress
from sevsnp.vm_config.config import read_vm_config

# With aes-xts-random and hmac-sha256 each sector has 16 bytes of random IV and 32 of authentication.
_TAG_SIZE = "48"

# Read the kernel's view of the root: dm names and UUIDs from the mount down to the disk, and the tag of each sector.
_LOOK = r"""
set -u
root=$(findmnt -no MAJ:MIN / | tr -d ' ')
echo "root=$(findmnt -no SOURCE,FSTYPE,OPTIONS / | tr -s ' ' ';')"
below() {  # the device of that name under another one
    for one in $1/slaves/*; do if [ "$(cat $one/dm/name)" = "$2" ]; then echo $one; fi; done
}
top=$(below "$(below /sys/dev/block/$root root_mirror)" root)
echo "crypt=$(cat $top/dm/uuid)"
for below in $top/slaves/*; do
    echo "integrity=$(cat $below/dm/uuid)"
    echo "tag_size=$(cat $below/integrity/tag_size)"
    for disk in $below/slaves/*; do echo "disk=$(cat $disk/serial)"; done
done
if sudo touch /.probe && sync /.probe; then echo writable=yes; fi
echo "system=$(systemctl is-system-running --wait || true)"
"""


def run_luks(
    attempt: Attempt, *, header: Path, config_dir: Path, key_dir: Path, asked: Mapping[str, int | str]
) -> dict[str, Any]:
    """Run the workflow and return what the run has shown. The disk is the host's copy of the image, removed at the end.

    The key release's own parameters are those of :func:`sevsnp.owner.luks.attest_luks`.
    """
    stages = attempt.stages
    # This copy of the volume has never been booted, so the record must not come from an earlier copy.
    write_record(key_dir, Luks2.read(header).uuid, Record("made"))
    with attempt.running() as (process, ssh_port, attest_port):
        with stages.stage("luks: boot with measured boot") as shown:
            wait_for_agent(process, attest_port, BOOT_SECONDS, attempt.console)
            if WAITING not in read_console(attempt.console):
                raise UserError(f"the console log lacks the line {WAITING!r}")
            shown.append(
                "the guest waits for its key; the firmware accepted kernel, initramfs and command line by hash"
            )
        with stages.stage("luks: attest and release the key") as shown:
            attest_luks(
                vm_config=attempt.config_path, header=header, config_dir=config_dir, key_dir=key_dir, key_file=None,
                host="127.0.0.1", port=attest_port, ssh_port=ssh_port, emulated_root=attempt.emulated_root,
                user=attempt.user, template=attempt.template, output=attempt.output, asked=asked,
            )  # fmt: skip
            verdict = json.loads(attempt.verdict.read_text())
            shown.append("evidence for a fresh nonce, this connection's key and this volume's header; then the key")
        with stages.stage("luks: log in") as shown:
            wait_for_login(attempt.ssh_config)
            shown_root = look_at_root(attempt.ssh_config)
            shown.append("the attested host key; every sector of the root encrypted and authenticated")
        attempt.shut_down(process)
    digest = read_vm_config(attempt.config_path).require_reference().launch_digest.hex()
    return {
        "measured_boot": verdict["measurement"] == digest,
        "launch_digest": verdict["measurement"],
        "verdict": accepted_as(verdict),
        "key_released": True,
        **shown_root,
        "ssh_login": True,
    }


def look_at_root(config: Path) -> dict[str, bool]:
    """Look at the root from inside the running guest; raises :class:`UserError` for anything but an encrypted one."""
    output = ssh(config, f"exec sh -s <<'END'\n{_LOOK}END", 240)
    return check_root(dict(re.findall(r"^([a-z_]+)=(.*)$", output, re.MULTILINE)))


def check_root(found: Mapping[str, str]) -> dict[str, bool]:
    """What the values ``found`` in the guest show about its root: the result of :func:`look_at_root`."""
    wanted = {
        "root": r"/dev/mapper/root_guarded;ext4;rw,.*",
        "crypt": r"CRYPT-LUKS2-[0-9a-f]{32}-root",
        "integrity": r"CRYPT-INTEGRITY-[0-9a-f]{32}-root_dif",
        "tag_size": _TAG_SIZE,
        "disk": "luks",
        "writable": "yes",
        "system": "running",
    }
    for name, pattern in wanted.items():
        if not re.fullmatch(pattern, found.get(name, "")):
            raise UserError(f"in the guest, {name}: found {found.get(name)!r}, expected {pattern}")
    return {"root_encrypted": True, "integrity": True}


def wait_for_agent(process: "subprocess.Popen[bytes]", port: int, seconds: float, console: Path) -> None:
    """Wait until a guest waits for its key at ``port`` of 127.0.0.1. Raises UserError if it ends or time is up."""
    deadline = time.monotonic() + seconds
    while not is_waiting("127.0.0.1", port):
        if process.poll() is not None:
            message = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
            raise UserError(f"the guest ended before it waited for its key (exit code {process.returncode})\n{message}")
        if time.monotonic() > deadline:
            raise UserError(f"no guest that waits for its key in {seconds:.0f} s", f"its console: {console}")
        progress.step(f"boot: {boot_stage(read_console(console))}")
        time.sleep(0.3)
