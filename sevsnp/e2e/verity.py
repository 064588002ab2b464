# SPDX-License-Identifier: Apache-2.0
"""The integrity workflow end to end: the guest boots, is verified, and is inspected from inside."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sevsnp.attestation.appraisal import Refused
from sevsnp.e2e.guest import BOOT_SECONDS, Attempt, accepted_as, ssh, wait_for_evidence, wait_for_login
from sevsnp.errors import UserError
from sevsnp.host.console import MARKER
from sevsnp.owner.attestation import attest, attest_guest
from sevsnp.vm_config.config import read_vm_config

_CHECKS = r"""
set -u
state() { if "$@" 2>/dev/null; then echo yes; else echo no; fi; }
writable() { state sudo touch "$1/.probe"; }
echo "root_writable=$(writable /)"
echo "usr_writable=$(writable /usr)"
for d in etc home var tmp; do echo "${d}_writable=$(writable /$d)"; done
echo "root=$(findmnt -no SOURCE,OPTIONS / | tr ' ' ';')"
for d in etc home var tmp; do echo "${d}_type=$(findmnt -no FSTYPE /$d)"; done
echo "system=$(systemctl is-system-running || true)"
"""


def look_inside(config: Path) -> dict[str, str]:
    """The running guest's report about its mounts, after it has finished starting."""
    output = ssh(
        config, "sh -c 'systemctl is-system-running --wait >/dev/null; exec sh -s' <<'END'\n" + _CHECKS + "END"
    )
    return dict(re.findall(r"^([a-z_]+)=(.*)$", output, re.MULTILINE))


def run_verity(attempt: Attempt) -> dict[str, Any]:
    """Run the workflow and return what the run has shown."""
    stages, config = attempt.stages, read_vm_config(attempt.config_path)
    with attempt.running() as (process, ssh_port, attest_port):
        with stages.stage("verity: boot with measured boot") as shown:
            wait_for_evidence(process, attest_port, BOOT_SECONDS, attempt.console)
            log = attempt.console.read_text(errors="replace")
            if MARKER not in log:
                raise UserError(f"the console log lacks the line {MARKER!r}")
            shown.append("the firmware accepted kernel, initramfs and command line by hash")
        with stages.stage("verity: attest") as shown:
            attest_guest(
                vm_config=attempt.config_path,
                host="127.0.0.1", port=attest_port, ssh_port=ssh_port, emulated_root=attempt.emulated_root,
                identity=attempt.identity, user=attempt.user, template=attempt.template, output=attempt.output,
            )  # fmt: skip
            verdict = json.loads(attempt.verdict.read_text())
            shown.append("evidence for a fresh nonce, launch digest as computed from the files")
        if attempt.platform == "emulated":
            with stages.stage("verity: refuse emulated evidence in production") as shown:
                shown.append(_refused_in_production(attempt.config_path, attest_port, attempt.emulated_root))
        with stages.stage("verity: log in") as shown:
            wait_for_login(attempt.ssh_config)
            found = look_inside(attempt.ssh_config)
            _expect(found)
            shown.append("the attested host key; root read-only and verified; /etc /home /var /tmp writable in memory")
        attempt.shut_down(process)
    reference = config.require_reference()
    return {
        "measured_boot": verdict["measurement"] == reference.launch_digest.hex(),
        "launch_digest": verdict["measurement"],
        "verdict": accepted_as(verdict),
        "ssh_login": True,
        "tmpfs_writable": True,
        "root_read_only": True,
    }


def _refused_in_production(config_path: Path, port: int, emulated_root: Path) -> str:
    """Check that the production verifier refuses this guest, and that the only reason is the unknown root."""
    production = read_vm_config(config_path)
    as_hardware = replace(production, launch=replace(production.launch, platform="snp"))
    try:
        attest(as_hardware, "127.0.0.1", port, emulated_root)
    except Refused as refused:
        if refused.reason != "unknown-root":
            raise UserError(f"refused for {refused.reason}, expected unknown-root") from None
        return "refused: unknown-root"
    raise UserError("the production verifier accepted emulated evidence")


def _expect(found: dict[str, str]) -> None:
    wanted = {"root_writable": "no", "usr_writable": "no"}
    wanted |= {f"{name}_writable": "yes" for name in ("etc", "home", "var", "tmp")}
    wanted |= {"tmp_type": "tmpfs", "system": "running"}
    for name in ("etc", "home", "var"):
        if found.get(f"{name}_type") not in ("overlay", "tmpfs"):
            raise UserError(f"in the guest, /{name} is {found.get(f'{name}_type')!r}, expected overlay or tmpfs")
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(f"in the guest, {name}: found {found.get(name)!r}, expected {value!r}")
    if not re.match(r"/dev/(mapper/root|dm-0);ro\b", found.get("root", "")):
        raise UserError(f"in the guest, the root is {found.get('root')!r}, expected the verity mapping, read-only")
