# SPDX-License-Identifier: Apache-2.0
"""The tools of build/bin with a real guest's evidence."""

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

from sevsnp.e2e.guest import ssh
from sevsnp.owner.client import NONCE_SIZE, ask
from tests.conftest import Built
from tests.support.shared_guests import Attested

pytestmark = pytest.mark.boot


def run(*argv: "str | Path") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )


def test_get_report_fails_in_an_emulated_guest_with_one_line(guest: Attested, built: Built) -> None:
    """get_report works with real secure processors only; get_report_emulated is another program. Control: --help."""
    sent = run("scp", "-q", "-F", guest.ssh_config, built.build / "bin" / "get_report", "guest:get_report")
    assert sent.returncode == 0, sent.stderr
    asked = run("ssh", "-F", guest.ssh_config, "guest", "sudo ./get_report --nonce " + "ab" * 32)
    assert asked.returncode == 1
    assert asked.stdout == ""
    reason = "/sys/kernel/config/tsm/report: No such device or address: this is not an SNP guest"
    assert asked.stderr == f"get_report: {reason}\n"
    assert "--nonce HEX64" in ssh(guest.ssh_config, "./get_report --help")


def test_the_output_of_get_report_emulated_is_verified(guest: Attested, built: Built, tmp_path: Path) -> None:
    """A user runs it by hand in the guest, and verify_report here. The production verifier refuses the output."""
    sent = run("scp", "-q", "-F", guest.ssh_config, built.build / "bin" / "get_report_emulated", "guest:")
    assert sent.returncode == 0, sent.stderr
    nonce = os.urandom(NONCE_SIZE)
    document = ssh(guest.ssh_config, f"sudo ./get_report_emulated --nonce {nonce.hex()}", 240)
    assert json.loads(document)["confidential"] is False
    evidence, keys = tmp_path / "evidence.emulated.json", tmp_path / "host_keys.pub"
    evidence.write_text(document)
    keys.write_text(ssh(guest.ssh_config, "cat /etc/ssh/ssh_host_*_key.pub"))
    words: list[str | Path] = ["--input", evidence, "--vm_definition", guest.running.config.source, "--host-key", keys]
    root: list[str | Path] = ["--root", guest.running.guest.root]
    for tool, more, code in (
        ("verify_report_emulated", ["--nonce", nonce.hex(), *root], 10),
        ("verify_report_emulated", ["--nonce", "ab" * NONCE_SIZE, *root], 2),
        ("verify_report", ["--nonce", nonce.hex()], 2),
    ):
        done = run(built.build / "bin" / tool, *words, *more)
        assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.parametrize(("tool", "code"), [("verify_report_emulated", 10), ("verify_report", 2)])
def test_both_verifiers_judge_the_same_files(
    guest: Attested, built: Built, tmp_path: Path, tool: str, code: int
) -> None:
    """The emulated verifier accepts them; the production verifier refuses only their root certificate."""
    nonce = os.urandom(NONCE_SIZE)
    answer = ask("127.0.0.1", guest.running.port, nonce)
    report, table, keys = tmp_path / "report.bin", tmp_path / "certificates.bin", tmp_path / "host_keys.pub"
    report.write_bytes(answer.report)
    table.write_bytes(answer.certificates)
    keys.write_text("".join(f"{key}\n" for key in answer.host_keys))
    words: list[str | Path] = ["--certificates", table, "--vm-config", guest.running.config.source]
    words += ["--nonce", nonce.hex(), "--host-key", keys]
    if tool == "verify_report_emulated":
        words += ["--root", guest.running.guest.root]
    program = built.build / "bin" / tool
    done = run(program, "--report", report, *words, "--json")
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert document["accepted"] is False
    if code == 2:
        assert document["reason"] == "unknown-root"
    else:
        assert document["accepted_as_emulated"] is True

    # get_report's JSON in place of both files.
    both = tmp_path / "evidence.json"
    encoded = {
        "report": base64.b64encode(answer.report).decode(),
        "certificates": base64.b64encode(answer.certificates).decode(),
    }
    both.write_text(json.dumps(encoded))
    assert run(program, "--report", both, *words[2:]).returncode == code
    # One bit of the report, and neither takes it.
    report.write_bytes(answer.report[:0x90] + bytes([answer.report[0x90] ^ 1]) + answer.report[0x91:])
    assert run(program, "--report", report, *words).returncode == 2
