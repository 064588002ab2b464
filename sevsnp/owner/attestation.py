# SPDX-License-Identifier: Apache-2.0
"""The owner's side: ask the guest for evidence, verify it, and only then give its host keys to ssh."""

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from sevsnp.attestation.appraisal import Evidence, Expected, NeverAccepted, Refused, Undecided
from sevsnp.attestation.outcome import REMEDY
from sevsnp.attestation.report_data import ssh_report_data
from sevsnp.attestation.verifier import HardwareVerdict, verify_report
from sevsnp.errors import UserError
from sevsnp.firmware.gate import check_launch_firmware
from sevsnp.owner.certificate_sources import CertificateSources
from sevsnp.owner.client import NONCE_SIZE, ask
from sevsnp.owner.kept import REFUSED, Conversation, keep
from sevsnp.owner.login import Login, Verdict
from sevsnp.vm_config.config import VmConfig, read_vm_config
from sevsnp.vm_config.fixed import check_fixed

Verify = Callable[[Evidence, Expected, datetime], Verdict]


@dataclass(frozen=True)
class Accepted:
    """Verified evidence: the verdict, whose type depends on the trust root, and the evidence that it vouches for."""

    verdict: Verdict
    conversation: Conversation


def verifier(config: VmConfig, emulated_root: Path, sources: CertificateSources | None = None) -> Verify:
    """The verifier for the platform of a VM config. The evidence does not influence the choice.

    ``sources`` have the certificates that the host's table lacks; None: AMD's service. An emulated guest needs none.
    """
    if config.launch.platform == "snp":
        endorser = (sources or CertificateSources()).endorser()
        return lambda evidence, expected, now: verify_report(evidence, expected, now, endorser=endorser)
    emulation = importlib.import_module("sevsnp.emulation.verify")

    def verify(evidence: Evidence, expected: Expected, now: datetime) -> Verdict:
        return cast(Verdict, emulation.verify_emulated(evidence, expected, now, emulated_root))

    return verify


def trust_domain(verdict: object) -> Literal["amd", "emulated"]:
    """The trust domain of a verdict, from its type: only its verifier can make the type, and it has no subclasses.

    Raises TypeError for an object of another type.
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
    output: Path | None = None,
    sources: CertificateSources | None = None,
) -> Accepted:
    """Ask the guest at ``host``:``port`` for evidence for a fresh nonce, and appraise it. ``never``: a release's list.

    ``sources`` have the certificates that the host's table lacks.
    Refused evidence is kept below ``output``, if given. Raises :class:`Refused` with its reason, or
    :class:`UserError` if there is no evidence at all.
    """
    config.require_reference()
    verify = verifier(config, emulated_root, sources)
    nonce = os.urandom(NONCE_SIZE)
    answer = ask(host, port, nonce, timeout)
    report_data = ssh_report_data(nonce, answer.host_key_blobs())
    now = datetime.now(UTC)
    talk = Conversation("verity", answer.report, answer.certificates, nonce, report_data, now, answer.host_keys)
    try:
        expected = Expected.of(config, report_data, never=never)
        return Accepted(verify(talk.evidence, expected, now), talk)
    except Refused as refused:
        keep_refused(output, talk, refused, config)
        raise


def keep_refused(output: Path | None, talk: Conversation, refused: Refused, config: VmConfig) -> None:
    """Keep refused evidence for the user, separate from accepted evidence."""
    if output is not None:
        where = keep(output / REFUSED, talk, refused.appraisal, refused.to_json(), config)
        print(f"what was refused, and why: {where['page']}")


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
    sources: CertificateSources | None = None,
    wait: Callable[[], None] | None = None,
) -> None:
    """`attest_WORKFLOW`: verify the guest, then write known_hosts, ssh_config, evidence and verdict into ``output``.

    ``asked`` are the settings given for this run, which must not contradict the VM config. Only newly accepted
    evidence replaces the evidence accepted before: until then ssh trusts the host keys of the earlier guest, and no
    others. Firmware and launch digests that the ``manifest`` (signed by ``manifest_key``) lists as never to be accepted
    are refused. ``sources`` have the certificates that the host's table lacks. ``wait`` is called after all checks that
    need no guest.
    """
    login = Login(host, ssh_port, identity, user, template, output)
    config = read_vm_config(vm_config)
    check_fixed(config, asked or {})
    check_launch_firmware(config.launch)  # before the guest is contacted
    config.require_reference()
    never = never_accepted(manifest, manifest_key)
    if wait:
        wait()
    try:
        accepted = attest(config, host, port, emulated_root, never=never, output=output, sources=sources)
    except Refused as refused:
        raise refusal(refused, config, f"{host}:{port}") from None
    login.allow(accepted.verdict, config, accepted.conversation)


def never_accepted(manifest: Path | None, manifest_key: Path | None) -> NeverAccepted | None:
    """A release's list; None without a manifest. Raises :class:`UserError` if the key did not sign the manifest."""
    if manifest is None:
        return None
    from sevsnp.release.refused import read_refused

    return read_refused(manifest, manifest_key, ("MANIFEST", "MANIFEST_PUBLIC_KEY"))


def refusal(refused: Refused, config: VmConfig, where: str) -> UserError:
    """An error for the user that describes the refusal, or why there is no verdict, and says what to do."""
    if isinstance(refused, Undecided):
        return UserError(
            f"{where}: UNDECIDED ({refused.reason}): {refused}",
            "allow access to AMD's key distribution service; docs/troubleshooting.md names other ways",
        )
    hint = f"{REMEDY}: {refused.remedy}" if refused.remedy else ""
    if config.launch.platform == "snp" and not hint:
        hint = "an emulated guest is attested with its own VM config: VM_CONFIG=….emulated.toml, or PLATFORM=emulated"
    return UserError(f"{where}: REFUSED ({refused.reason}): {refused}", hint)
