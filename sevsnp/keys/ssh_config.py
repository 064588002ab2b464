# SPDX-License-Identifier: Apache-2.0
"""The configuration with which `ssh -F FILE guest` logs in to a guest with the user's key."""

from pathlib import Path

from sevsnp.system.files import write_atomic
from sevsnp.system.template import text_template


def write_ssh_config(
    output: Path, *, template: Path, host: str, port: int, user: str, identity: Path, known_hosts: Path, vouched: bool
) -> None:
    """Write ``output`` for the sshd at ``host`` and ``port``, where ``user`` logs in with the private key ``identity``.

    ``vouched``: accepted evidence names the host keys in ``known_hosts``, and ssh takes no other key. Else nobody
    vouches for the guest: ssh takes the first key that answers, adds it to ``known_hosts``, and takes no other later.
    """
    text = text_template(template).render(
        host=host,
        port=port,
        user=user,
        identity=identity.resolve(),
        known_hosts=known_hosts.resolve(),
        vouched=vouched,
    )
    write_atomic(output, text)
