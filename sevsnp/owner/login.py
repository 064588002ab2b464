# SPDX-License-Identifier: Apache-2.0
"""Set up ssh for an accepted guest: only the host keys that the evidence vouches for are accepted."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sevsnp.attestation.outcome import Appraisal
from sevsnp.keys.ssh_config import write_ssh_config
from sevsnp.owner.kept import Conversation, keep
from sevsnp.system.colour import Colour, paint
from sevsnp.system.files import write_atomic
from sevsnp.vm_config.config import BANNER, VmConfig


class Verdict(Protocol):
    """The interface of both verdict types. Code that releases a secret must check the verdict's own type."""

    @property
    def appraisal(self) -> Appraisal: ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Login:
    """The address of a guest's sshd, the user to log in as, and the directory ``output`` that attestation writes to."""

    host: str
    ssh_port: int
    identity: Path
    user: str
    template: Path
    output: Path

    @property
    def ssh_config(self) -> Path:
        return self.output / "ssh_config"

    def allow(self, verdict: Verdict, config: VmConfig, talk: Conversation) -> None:
        """Keep the evidence, give ssh the host keys that ``verdict`` vouches for, and print the result."""
        document = verdict.to_json()
        where = keep(self.output, talk, verdict.appraisal, document, config)
        known_hosts = self.output / "known_hosts"
        write_atomic(known_hosts, known_hosts_lines(self.host, self.ssh_port, talk.host_keys))
        write_ssh_config(
            self.ssh_config,
            template=self.template,
            host=self.host,
            port=self.ssh_port,
            user=self.user,
            identity=self.identity,
            known_hosts=known_hosts,
            vouched=True,
        )
        for note in document["notes"]:
            print(f"note: {note}")
        for road in document["open"]:
            print(f"open: {road}")
        print(f"evidence in {where['evidence']}, verdict in {where['page']}, host keys in {known_hosts}")
        say_accepted(document)


def say_accepted(document: Mapping[str, Any]) -> None:
    """Print in the verdict's colour that the evidence was accepted: green is for hardware only."""
    colour: Colour = "green" if document["trust_domain"] == "amd" else "amber"
    if colour == "amber":
        print(paint(BANNER, colour, sys.stdout))
    verdict = f"accepted ({document['trust_domain']}): launch digest {document['measurement']}"
    print(paint(verdict, colour, sys.stdout))


def known_hosts_lines(host: str, port: int, keys: tuple[str, ...]) -> str:
    """The lines of a known_hosts file; a port other than 22 is part of the host name (sshd(8))."""
    name = host if port == 22 else f"[{host}]:{port}"
    return "".join(f"{name} {key}\n" for key in keys)
