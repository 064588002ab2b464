# SPDX-License-Identifier: Apache-2.0
"""`attest_luks`: verify a guest that waits for its key, and send the key only if the guest may have it."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from sevsnp.attestation.appraisal import Expected, Refused
from sevsnp.errors import UserError
from sevsnp.firmware.gate import check_launch_firmware
from sevsnp.images.luks2 import Luks2, opens
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record
from sevsnp.keys.paths import Keys
from sevsnp.owner.attestation import keep_refused, never_accepted, refusal, trust_domain, verifier
from sevsnp.owner.certificate_sources import CertificateSources
from sevsnp.owner.kept import Conversation
from sevsnp.owner.key_release import Secret, connect, owner_context, release
from sevsnp.owner.login import Login, Verdict
from sevsnp.vm_config.config import read_vm_config
from sevsnp.vm_config.fixed import check_fixed


def check_release(domain: str, record: Record, *, emulated_asked: bool, again: str = "./doitw attest_luks") -> None:
    """Refuse a key that a guest of this trust domain (amd or emulated) must not have.

    ``emulated_asked``: the user set PLATFORM=emulated for this run. A software secure processor hides nothing from its
    host, so a key that was sent to an emulated guest is never sent to a confidential guest. ``again`` is the command
    that asks for the key.
    """
    if domain == "amd":
        if record.exposed:
            raise UserError(
                "this volume's key was sent to an emulated guest, whose host could have kept it",
                f"if the guest is emulated: {again} PLATFORM=emulated — "
                "for SEV-SNP make a volume with another key: ./doitw setup_luks PLATFORM=snp",
            )
    elif domain == "emulated":
        if record.key != "made" and not emulated_asked:
            raise UserError(
                "a key of your own is not sent to an emulated guest, whose host can read it",
                "allow it, if the host may have the key: PLATFORM=emulated",
            )
    else:
        raise UserError(f"found trust domain {domain!r}, expected amd or emulated")


class Volume:
    """A volume on the owner's side: header, key and record. Raises UserError if the key does not open the volume."""

    def __init__(self, header: Path, config_dir: Path, key_file: str | None) -> None:
        luks = Luks2.read(header)
        self.uuid, self.digest = luks.uuid, hashlib.sha256(luks.data).digest()
        self.config_dir = config_dir
        self.record = luks_key.read_record(config_dir, luks.uuid)
        key = luks_key.given(key_file) if key_file is not None else None
        if key is None and self.record.key == "made":
            key = luks_key.read_made_key(config_dir, luks.uuid)
        if key is None:
            raise UserError(
                f"{header}: found no key, expected the key of your own that the volume was made with",
                "give the key: LUKS_KEY=… ./doitw attest_luks",
            )
        if not opens(luks.data, key.data):
            raise UserError(f"{key.source}: this key does not open {header}", "give the right key; no key was sent")
        self._key = key.data

    def secret_for(self, verdict: Verdict, *, emulated_asked: bool) -> Secret:
        """The secret that this verdict releases. The record notes the guest before the guest gets the secret."""
        domain = trust_domain(verdict)
        # Read the record again: another attestation may have changed it meanwhile.
        self.record = luks_key.read_record(self.config_dir, self.uuid)
        check_release(domain, self.record, emulated_asked=emulated_asked)
        emulated = domain == "emulated"
        self.record = luks_key.update_record(self.config_dir, self.uuid, exposed=emulated, sent=not emulated)
        return Secret(self.digest, self.record.generation, self._key)

    def booted(self, generation: int) -> None:
        """Record the generation that a guest has reported."""
        self.record = luks_key.update_record(self.config_dir, self.uuid, generation=generation)


def attest_luks(
    *,
    vm_config: Path,
    header: Path,
    config_dir: Path,
    key_file: str | None,
    host: str,
    port: int,
    ssh_port: int,
    emulated_root: Path,
    user: str,
    template: Path,
    output: Path,
    asked: Mapping[str, int | str] | None = None,
    key_dir: Path | None = None,
    again: str = "./doitw attest_luks",
    manifest: Path | None = None,
    manifest_key: Path | None = None,
    sources: CertificateSources | None = None,
    wait: Callable[[], None] | None = None,
) -> None:
    """Verify the guest at ``host``:``port``, send it the key of the volume with ``header``, and give ssh its host key.

    ``asked`` are the settings given for this run. Only newly accepted evidence replaces the evidence accepted before;
    refused evidence is kept too (sevsnp.owner.kept).
    Firmware and launch digests that the ``manifest`` (signed by ``manifest_key``) lists as never to be accepted are
    refused.
    ``sources`` have the certificates that the host's table lacks.
    ``wait`` is called after all checks that need no guest.
    ``key_dir`` has the volume's key and record; if it is None, ``config_dir`` has them. If ``key_file`` is None, a key
    that was given for this run is ignored. ``again`` is the command of this run, for a hint. Raises
    :class:`UserError`. A key is sent only if the evidence was accepted.
    """
    keys, where = Keys.of(config_dir), f"{host}:{port}"
    login = Login(host, ssh_port, keys.user_private, user, template, output)
    config = read_vm_config(vm_config)
    check_fixed(config, asked or {})
    if config.launch.workflow != "luks":
        raise UserError(f"{vm_config}: found the {config.launch.workflow} workflow, expected luks")
    config.require_reference()
    check_launch_firmware(config.launch)
    volume = Volume(header, key_dir or config_dir, key_file)
    emulated_asked = (asked or {}).get("PLATFORM") == "emulated"
    # A refusal that does not depend on the evidence is reported before the guest is contacted.
    domain = "amd" if config.launch.platform == "snp" else "emulated"
    check_release(domain, volume.record, emulated_asked=emulated_asked, again=again)
    verify = verifier(config, emulated_root, sources)
    never = never_accepted(manifest, manifest_key)

    def appraise(talk: Conversation) -> Verdict:
        try:
            expected = Expected.of(config, talk.report_data, never=never)
            return verify(talk.evidence, expected, talk.at)
        except Refused as refused:
            keep_refused(output, talk, refused, config)
            raise

    if wait:
        wait()
    with connect(host, port, owner_context(keys.owner_certificate, keys.owner_private)) as connection:
        try:
            verdict, talk, opened = release(
                connection,
                volume.digest,
                where,
                appraise=appraise,
                decide=lambda verdict: volume.secret_for(verdict, emulated_asked=emulated_asked),
            )
        except Refused as refused:
            raise refusal(refused, config, where) from None
        volume.booted(opened.generation)
    login.allow(verdict, config, talk)
    print(f"the key of volume {volume.uuid} was sent; its root is open, generation {opened.generation}")
