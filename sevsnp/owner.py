"""The owner's side: ask the guest for evidence, verify it, and only then let ssh know its host keys."""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sevsnp.attestation.appraisal import Evidence, Expected, NeverAccepted, Refused
from sevsnp.attestation.client import NONCE_SIZE, GuestAnswer, ask
from sevsnp.attestation.outcome import REMEDY
from sevsnp.attestation.report_data import ssh_report_data
from sevsnp.attestation.verify import HardwareVerdict, amd_service, verify_report
from sevsnp.errors import UserError
from sevsnp.files import write_atomic
from sevsnp.firmware.gate import check_launch_firmware
from sevsnp.vm.config import BANNER, VmConfig, read_vm_config
from sevsnp.vm.fixed import check_fixed


def named_for(path: Path, *, emulated: bool) -> Path:
    """``path``, under emulation with ``emulated`` in its name: ``report.bin`` is then ``report.emulated.bin``."""
    return path.with_name(f"{path.stem}.emulated{path.suffix}") if emulated else path


class Verdict(Protocol):
    """What both verdict types can do. They are no more alike: what releases a secret must ask for the type itself."""

    def to_json(self) -> dict[str, Any]: ...


Verify = Callable[[Evidence, Expected, datetime], Verdict]


@dataclass(frozen=True)
class Accepted:
    """Evidence that was verified: the verdict (of the type its trust root gives), and what it vouches for."""

    verdict: Verdict
    answer: GuestAnswer


def verifier(config: VmConfig, emulated_root: Path) -> Verify:
    """The verifier that a VM config asks for. The evidence has no say in it."""
    if config.launch.platform == "snp":
        # What the host's certificate table lacks comes from AMD.
        return lambda evidence, expected, now: verify_report(evidence, expected, now, endorser=amd_service())
    emulation = importlib.import_module("sevsnp.emulation.verify")

    def verify(evidence: Evidence, expected: Expected, now: datetime) -> Verdict:
        return cast(Verdict, emulation.verify_emulated(evidence, expected, now, emulated_root))

    return verify


def trust_domain(verdict: object) -> Literal["amd", "emulated"]:
    """Under which trust a verdict was given, by its very type: neither can be made elsewhere, nor has subclasses.

    Raises TypeError for what is no verdict.
    """
    if type(verdict) is HardwareVerdict:
        return "amd"
    if type(verdict) is importlib.import_module("sevsnp.emulation.verify").EmulatedVerdict:
        return "emulated"
    raise TypeError(f"found {type(verdict).__name__}, expected a verdict")


def attest(
    config: VmConfig,
    host: str,
    port: int,
    emulated_root: Path,
    timeout: float = 30.0,
    never: NeverAccepted | None = None,
) -> Accepted:
    """Ask the guest at ``host``:``port`` for evidence for a fresh nonce, and appraise it. ``never``: a release's list.

    Raises :class:`Refused` with its reason, or :class:`UserError` where there is no evidence at all.
    """
    config.require_reference()
    verify = verifier(config, emulated_root)
    nonce = os.urandom(NONCE_SIZE)
    answer = ask(host, port, nonce, timeout)
    expected = Expected.of(config, ssh_report_data(nonce, answer.host_key_blobs()), never=never)
    verdict = verify(Evidence(answer.report, answer.certificates), expected, datetime.now(UTC))
    return Accepted(verdict, answer)


def attest_guest(
    *,
    vm_config: Path,
    host: str,
    port: int,
    ssh_port: int,
    emulated_root: Path,
    identity: Path,
    user: str,
    template: Path,
    output: Path,
    asked: Mapping[str, int | str] | None = None,
    manifest: Path | None = None,
    manifest_key: Path | None = None,
) -> None:
    """`attest_WORKFLOW`: verify the guest, then write known_hosts, ssh_config and the verdict into ``output``.

    ``asked`` are the settings given for this run, which must not contradict the VM config. What an earlier guest left
    in ``output`` is removed first, so that a refusal leaves nothing that ssh would trust. What a ``manifest`` that
    ``manifest_key`` has signed lists as never to be accepted is refused.
    """
    login = Login(host, ssh_port, identity, user, template, output)
    login.forget()
    config = read_vm_config(vm_config)
    check_fixed(config, asked or {})
    check_launch_firmware(config.launch)  # before the guest is spoken to
    try:
        accepted = attest(config, host, port, emulated_root, never=never_accepted(manifest, manifest_key))
    except Refused as refused:
        raise refusal(refused, config, f"{host}:{port}") from None
    login.allow(accepted.verdict, config, accepted.answer.host_keys)


def never_accepted(manifest: Path | None, manifest_key: Path | None) -> NeverAccepted | None:
    """A release's list; None without a manifest. Raises :class:`UserError` for one that the key did not sign."""
    if manifest is None:
        return None
    from sevsnp.release.refused import read_refused

    return read_refused(manifest, manifest_key, ("MANIFEST", "MANIFEST_PUBLIC_KEY"))


def refusal(refused: Refused, config: VmConfig, where: str) -> UserError:
    """A refusal in words for the user, with what helps against it."""
    hint = f"{REMEDY}: {refused.remedy}" if refused.remedy else ""
    if config.launch.platform == "snp" and not hint:
        hint = "an emulated guest is attested with its own VM config: VM_CONFIG=….emulated.toml, or PLATFORM=emulated"
    return UserError(f"{where}: REFUSED ({refused.reason}): {refused}", hint)


@dataclass(frozen=True)
class Login:
    """Where a guest's sshd is, as whom to log in, and the directory ``output`` that attestation writes to."""

    host: str
    ssh_port: int
    identity: Path
    user: str
    template: Path
    output: Path

    @property
    def _files(self) -> tuple[Path, Path, Path]:
        return self.output / "known_hosts", self.output / "ssh_config", self.output / "verdict.json"

    def verdict(self, *, emulated: bool) -> Path:
        """Where a verdict is kept; one under emulation says so by its name too, which nothing goes by."""
        return named_for(self._files[2], emulated=emulated)

    def forget(self) -> None:
        """Remove what an earlier guest left, so that a refusal leaves nothing that ssh would trust."""
        for stale in (*self._files, self.verdict(emulated=True)):
            stale.unlink(missing_ok=True)

    def allow(self, verdict: Verdict, config: VmConfig, host_keys: tuple[str, ...]) -> None:
        """Let ssh know the host keys that ``verdict`` vouches for, and say so."""
        known_hosts, ssh_config, _ = self._files
        write_atomic(known_hosts, known_hosts_lines(self.host, self.ssh_port, host_keys))
        templates = Environment(
            loader=FileSystemLoader(self.template.parent),
            undefined=StrictUndefined,
            autoescape=False,  # noqa: S701 - not HTML
        )
        text = templates.get_template(self.template.name).render(
            host=self.host,
            port=self.ssh_port,
            user=self.user,
            identity=self.identity.resolve(),
            known_hosts=known_hosts.resolve(),
        )
        write_atomic(ssh_config, text + "\n")
        document = verdict.to_json()
        result = self.verdict(emulated=document["trust_domain"] != "amd")
        write_atomic(result, json.dumps({**document, "vm_config": str(config.source)}, indent=2) + "\n")
        if document["trust_domain"] != "amd":
            print(BANNER)
        print(f"accepted ({document['trust_domain']}): launch digest {document['measurement']}")
        for note in document["notes"]:
            print(f"note: {note}")
        for road in document["open"]:
            print(f"open: {road}")
        print(f"host keys in {known_hosts}; log in with: ssh -F {ssh_config} guest")


def known_hosts_lines(host: str, port: int, keys: tuple[str, ...]) -> str:
    """The lines of a known_hosts file; a port other than 22 is part of the name (sshd(8))."""
    name = host if port == 22 else f"[{host}]:{port}"
    return "".join(f"{name} {key}\n" for key in keys)
