# SPDX-License-Identifier: Apache-2.0
"""Another machine in the place of the guest: the user never logs in there, its key never gets into known_hosts.

The attacker has a guest of his own with a real sshd, which even lets the user's key in: whoever gets as far as
logging in there is caught.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from tests.support.relay import forward, listening, rewrite
from tests.support.shared_guests import Attested, Running, ssh_unchecked

pytestmark = pytest.mark.boot

# OpenSSH's client says so (-v) when it takes the host key, and when the server asks who it is.
TRUSTS = "SSH2_MSG_NEWKEYS sent"
AUTHENTICATES = "SSH2_MSG_SERVICE_ACCEPT received"


def ssh(config: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["ssh", "-v", "-F", str(config), "guest", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def host_key(running: Running) -> str:
    """The host key that an sshd offers to anyone who asks."""
    scanned = subprocess.run(
        ["ssh-keyscan", "-t", "ed25519", "-p", str(running.ssh_port), "127.0.0.1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return " ".join(scanned.stdout.split()[1:3])


def test_an_attacker_s_sshd_with_genuine_evidence_is_refused(
    guest: Attested, impostor: Running, tmp_path: Path
) -> None:
    """The attestation is forwarded to the genuine guest, the login to the attacker's guest."""
    record = bytearray()
    with (
        listening(forward(guest.running.port)) as attest_port,
        listening(forward(impostor.ssh_port, record)) as ssh_port,
    ):
        guest.running.attest_into(tmp_path, port=attest_port, ssh_port=ssh_port)
        refused = ssh(tmp_path / "ssh_config", "true")
        assert refused.returncode == 255
        assert "Host key verification failed" in refused.stderr
        assert TRUSTS not in refused.stderr
        assert AUTHENTICATES not in refused.stderr
        # The banner, two plain packets of the key exchange, and the end: no user name, no key, no ciphertext.
        assert record.startswith(b"SSH-2.0-")
        assert b"user" not in record

        # Control: without the attested host key the very same server logs the user in, and has all he sends.
        record.clear()
        fooled = ssh_unchecked(guest.running.built, ssh_port, "cat /etc/machine-id")
        assert fooled.returncode == 0, fooled.stderr
        assert TRUSTS in fooled.stderr
        assert AUTHENTICATES in fooled.stderr
        assert fooled.stdout != guest.ssh("cat /etc/machine-id")

    # Control: through the same kind of relay, the genuine sshd is let through.
    with listening(forward(guest.running.ssh_port)) as ssh_port:
        guest.running.attest_into(tmp_path, ssh_port=ssh_port)
        assert ssh(tmp_path / "ssh_config", "cat /etc/machine-id").stdout == guest.ssh("cat /etc/machine-id")


def test_an_attacker_s_agent_with_its_own_host_key_is_refused(
    guest: Attested, impostor: Running, tmp_path: Path
) -> None:
    """The answer has a genuine report for the owner's own nonce, together with the attacker's host key."""
    key = host_key(impostor)
    assert key != host_key(guest.running)

    def own_key(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "host_keys": [key]}

    written = [tmp_path / name for name in ("known_hosts", "ssh_config", "verdict.emulated.json")]
    guest.running.attest_into(tmp_path)  # control, and what an earlier guest has left
    before = [path.read_bytes() for path in written]
    with listening(rewrite(guest.running.port, own_key)) as port, pytest.raises(UserError) as refused:
        guest.running.attest_into(tmp_path, port=port)
    assert "REFUSED (report-data)" in str(refused.value)
    # ssh trusts what it trusted before: the guest that was accepted, and nobody else.
    assert before == [path.read_bytes() for path in written]


def test_the_attacker_s_own_guest_is_not_attested(guest: Attested, impostor: Running, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the guest gave no evidence"):
        guest.running.attest_into(tmp_path, port=impostor.port, ssh_port=impostor.ssh_port)
    assert os.listdir(tmp_path) == []
