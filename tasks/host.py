# SPDX-License-Identifier: Apache-2.0
"""Tasks about the host: whether it can start SEV-SNP guests, and what it needs for that."""

from pathlib import Path
from typing import Any

from tasks.graph import Task, command
from tasks.project import BUILD, QEMU

# The verdict about this host.
CHECKED = BUILD / "check_host.json"


def task_check_host() -> Task:
    """Say whether this host can start SEV-SNP guests, and if not, why and how to mend it

    Looks at processor, BIOS, secure processor, kernel, KVM, devices and QEMU, and prints what was found, what is
    wanted and how to mend it. What this user cannot read is unknown, never good. Writes build/check_host.json (the
    verdict) and build/host_record (what was read, to judge it elsewhere with --from). Exit status 0: a guest can start.

    Next: ./doitw prepare_host, or if all is well: ./doitw run_sev_snp_verity PLATFORM=snp
    """
    recording = {
        "name": "tree",
        "long": "from",
        "default": "",
        "help": "judge the recorded host in this directory, and not this machine",
    }
    return {**check([QEMU, Path("qemu-system-x86_64")]), "params": [recording]}


def check(qemus: list[Path], **arguments: Any) -> Task:
    """A check of the host; ``qemus``: where its QEMU may be, and the build's is first."""
    return command(
        "sevsnp.host_setup.check:check_host",
        record=BUILD / "host_record",
        output=CHECKED,
        qemus=qemus,
        **arguments,
    )


def task_prepare_host() -> Task:
    """Install what an SEV-SNP host needs, after asking; --dry-run, --undo

    Shows the plan (a newer kernel of the distribution, parameters for GRUB, rights to /dev/kvm and /dev/sev), asks,
    does it as root or through sudo, and says when to reboot. --undo takes back what it has changed and nothing else.
    For Debian and Ubuntu. The BIOS is set up by hand: docs/hardware.md.

    Next: ./doitw check_host
    """
    options = [
        {"name": "dry_run", "long": "dry-run", "type": bool, "default": False, "help": "show the plan, change nothing"},
        {"name": "undo", "long": "undo", "type": bool, "default": False, "help": "take back what it has changed"},
        {"name": "yes", "long": "yes", "type": bool, "default": False, "help": "agree to the plan, do not ask"},
    ]
    return {**command("sevsnp.host_setup.prepare:prepare_host"), "params": options}
