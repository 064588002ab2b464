# SPDX-License-Identifier: Apache-2.0
"""The files that an attestation keeps: the evidence, the request for it, and the verdict, whether accepted or refused.

No program decides by these files. The user can read them and verify them again (verify_report).
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from sevsnp.attestation.appraisal import Appraisal, Evidence
from sevsnp.attestation.page import write_page
from sevsnp.errors import UserError
from sevsnp.system.files import each_key_once, write_atomic
from sevsnp.vm_config.config import VmConfig

REFUSED = "refused"


def named_for(path: Path, *, emulated: bool) -> Path:
    """``path``; if ``emulated``, with that word in its name: ``report.bin`` becomes ``report.emulated.bin``."""
    return path.with_name(f"{path.stem}.emulated{path.suffix}") if emulated else path


@dataclass(frozen=True)
class Conversation:
    """Evidence as a guest sent it at the time ``at`` (aware), and the values that it must be bound to.

    ``report`` is the raw report (1184 bytes if it has the right form), ``certificates`` the certificate table,
    ``nonce`` 32 bytes, ``report_data`` the expected REPORT_DATA (64 bytes). ``host_keys`` are ``type base64``, as far
    as they are known. ``bound`` has the other values that REPORT_DATA binds, by name, in hex.
    """

    workflow: str
    report: bytes
    certificates: bytes
    nonce: bytes
    report_data: bytes
    at: datetime
    host_keys: tuple[str, ...] = ()
    bound: Mapping[str, str] = field(default_factory=dict)

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.report, self.certificates)

    def to_json(self, *, emulated: bool) -> dict[str, Any]:
        """The document that get_report writes too (``report``, ``certificates``), with the owner's own values."""
        return {
            **({"emulated": True, "confidential": False} if emulated else {}),
            "report": base64.b64encode(self.report).decode(),
            "certificates": base64.b64encode(self.certificates).decode(),
            "workflow": self.workflow,
            "nonce": self.nonce.hex(),
            "report_data": self.report_data.hex(),
            "host_keys": list(self.host_keys),
            "bound": dict(self.bound),
            "time": self.at.isoformat(timespec="seconds"),
        }


def places(directory: Path, *, emulated: bool) -> dict[str, Path]:
    """The paths of all kept files in a guest's state directory, by their kind."""
    names = {
        "evidence": "evidence.json",
        "report": "attestation_report.bin",
        "verdict": "verdict.json",
        "page": "verdict.html",
    }
    found = {what: named_for(directory / name, emulated=emulated) for what, name in names.items()}
    return {**found, "host_keys": directory / "host_keys.pub"}


def keep(
    directory: Path,
    conversation: Conversation,
    appraisal: Appraisal,
    verdict: Mapping[str, Any],
    config: VmConfig,
) -> dict[str, Path]:
    """Write the result of an attestation into ``directory``, and return :func:`places`.

    ``verdict`` is the document of the verdict or of the refusal. ``config`` is the VM config that the evidence was
    compared with. Files of another trust domain in ``directory`` are removed.
    """
    emulated = appraisal.trust_domain != "amd"
    where = places(directory, emulated=emulated)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(where["report"], conversation.report)
    write_atomic(where["evidence"], json.dumps(conversation.to_json(emulated=emulated), indent=2) + "\n")
    if conversation.host_keys:
        write_atomic(where["host_keys"], "".join(f"{key}\n" for key in conversation.host_keys))
    write_atomic(where["verdict"], json.dumps({**verdict, "vm_config": str(config.source)}, indent=2) + "\n")
    write_page(where["page"], appraisal, config)
    for stale in places(directory, emulated=not emulated).values():
        if stale not in where.values():
            stale.unlink(missing_ok=True)
    return where


def read(directory: Path, *, emulated: bool) -> Conversation | None:
    """The evidence that was accepted last, or None. Raises UserError if the file is damaged."""
    path = places(directory, emulated=emulated)["evidence"]
    try:
        document = json.loads(path.read_bytes(), object_pairs_hook=each_key_once)
        return Conversation(
            workflow=document["workflow"],
            report=base64.b64decode(document["report"], validate=True),
            certificates=base64.b64decode(document["certificates"], validate=True),
            nonce=bytes.fromhex(document["nonce"]),
            report_data=bytes.fromhex(document["report_data"]),
            at=datetime.fromisoformat(document["time"]),
            host_keys=tuple(document["host_keys"]),
            bound=dict(document["bound"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise UserError(
            f"{path}: not the evidence of an attestation: {error!r}", f"remove it: rm {quote(str(path))}"
        ) from None
