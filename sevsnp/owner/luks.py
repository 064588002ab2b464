# SPDX-License-Identifier: Apache-2.0
"""Verify a guest that waits for the key of its encrypted root or data disk, and send it only if it may have it."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from sevsnp.attestation.appraisal import Expected, NeverAccepted, Refused
from sevsnp.errors import UserError
from sevsnp.firmware.gate import check_launch_firmware
from sevsnp.images.luks2 import Luks2, opens
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record
from sevsnp.keys.paths import Keys
from sevsnp.owner.attestation import keep_refused, never_accepted, refusal, trust_domain, verifier
from sevsnp.owner.certificate_sources import CertificateSources
from sevsnp.owner.kept import Conversation
from sevsnp.owner.key_release import Opened, Secret, connect, owner_context, release
from sevsnp.owner.login import Login, Verdict
from sevsnp.vm_config.config import VmConfig, read_vm_config
from sevsnp.vm_config.fixed import check_fixed
from sevsnp.volumes.data_disk import header_of

# What makes the volume whose key a command sends.
_MAKING = {"attest_luks": "./doitw setup_luks", "attest_verity": "./doitw setup_verity"}


def check_release(domain: str, record: Record, *, emulated_asked: bool, again: str = "./doitw attest_luks") -> None:
    """Refuse a key that a guest of this trust domain (amd or emulated) must not have.

    ``emulated_asked``: the user set PLATFORM=emulated for this run. A software secure processor hides nothing from its
    host, so a key that was sent to an emulated guest is never sent to a confidential guest. Nor is a made key that was
    sent to a confidential guest ever sent to an emulated one: the host, which has the volume, could then read it.
    ``again`` is the command that asks for the key.
    """
    make = _MAKING[again.split()[1]]
    if domain == "amd":
        if record.exposed:
            raise UserError(
                "this volume's key was sent to an emulated guest, whose host could have kept it",
                f"if the guest is emulated: {again} PLATFORM=emulated — "
                f"for SEV-SNP make a volume with another key: {make} PLATFORM=snp",
            )
    elif domain == "emulated":
        if record.only_confidential:
            raise UserError(
                "this volume's key was sent to a confidential guest, and is not sent to an emulated one",
                "if the guest should run on SEV-SNP, its host has started another one — "
                f"for emulation make another volume: {make} PLATFORM=emulated",
            )
        if record.key != "made" and not emulated_asked:
            raise UserError(
                "a key of your own is not sent to an emulated guest, whose host can read it",
                "allow it, if the host may have the key: PLATFORM=emulated",
            )
    else:
        raise UserError(f"found trust domain {domain!r}, expected amd or emulated")


class Volume:
    """A volume on the owner's side: header, key and record. Raises UserError if the key does not open the volume.

    ``again`` is the command of this run, for a hint.
    """

    def __init__(
        self, header: Path, config_dir: Path, key_file: str | None, again: str = "./doitw attest_luks"
    ) -> None:
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
                f"give the key: LUKS_KEY=… {again}",
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
    keys = Keys.of(config_dir)
    login = Login(host, ssh_port, keys.user_private, user, template, output)
    config = read_vm_config(vm_config)
    check_fixed(config, asked or {})
    if config.launch.workflow != "luks":
        raise UserError(f"{vm_config}: found the {config.launch.workflow} workflow, expected luks")
    config.require_reference()
    check_launch_firmware(config.launch)
    giving = KeyRelease(
        config, Volume(header, key_dir or config_dir, key_file, again), keys, output,
        emulated_asked=(asked or {}).get("PLATFORM") == "emulated", again=again, emulated_root=emulated_root,
        never=never_accepted(manifest, manifest_key), sources=sources,
    )  # fmt: skip
    if wait:
        wait()
    verdict, talk, opened = giving.give(host, port)
    login.allow(verdict, config, talk)
    print(f"the key of volume {giving.volume.uuid} was sent; its root is open, generation {opened.generation}")


def release_data_key(
    *,
    vm_config: Path,
    config_dir: Path,
    key_file: str,
    host: str,
    port: int,
    emulated_root: Path,
    output: Path,
    again: str,
    asked: Mapping[str, int | str] | None = None,
    manifest: Path | None = None,
    manifest_key: Path | None = None,
    sources: CertificateSources | None = None,
) -> None:
    """Verify the verified guest that waits at ``host``:``port``, and send it the key of its data disk.

    The header is that of the VM config's data disk. The other parameters are those of :func:`attest_luks`. The guest
    then goes on with its boot, and gives evidence for its SSH host key. Raises :class:`UserError`.
    """
    config = read_vm_config(vm_config)
    disk = config.launch.written
    assert disk is not None
    config.require_reference()
    giving = KeyRelease(
        config, Volume(header_of(disk), config_dir, key_file, again), Keys.of(config_dir), output,
        emulated_asked=(asked or {}).get("PLATFORM") == "emulated", again=again, emulated_root=emulated_root,
        never=never_accepted(manifest, manifest_key), sources=sources,
    )  # fmt: skip
    _, _, opened = giving.give(host, port)
    print(f"the key of data disk {giving.volume.uuid} was sent; it is open, generation {opened.generation}", flush=True)


class KeyRelease:
    """The release of a volume's key to a guest of a VM config, whose owner has the ``keys``.

    Refused evidence is kept below ``output``. ``never`` has what is never accepted; the other parameters are those of
    :func:`attest_luks`. Raises UserError for a key that no guest of this platform may have, before any is contacted.
    """

    def __init__(
        self,
        config: VmConfig,
        volume: Volume,
        keys: Keys,
        output: Path,
        *,
        emulated_asked: bool,
        again: str,
        emulated_root: Path,
        never: NeverAccepted | None,
        sources: CertificateSources | None,
    ) -> None:
        self.config, self.volume, self._keys, self._output = config, volume, keys, output
        self._emulated_asked, self._never = emulated_asked, never
        # A refusal that does not depend on the evidence is reported before the guest is contacted.
        domain = "amd" if config.launch.platform == "snp" else "emulated"
        check_release(domain, volume.record, emulated_asked=emulated_asked, again=again)
        self._verify = verifier(config, emulated_root, sources)

    def give(self, host: str, port: int) -> tuple[Verdict, Conversation, Opened]:
        """Send the key if the guest's evidence is accepted, and wait until the disk is open."""
        where = f"{host}:{port}"
        with connect(host, port, owner_context(self._keys.owner_certificate, self._keys.owner_private)) as connection:
            try:
                verdict, talk, opened = release(
                    connection,
                    self.volume.digest,
                    where,
                    appraise=self._appraise,
                    decide=lambda verdict: self.volume.secret_for(verdict, emulated_asked=self._emulated_asked),
                )
            except Refused as refused:
                raise refusal(refused, self.config, where) from None
            self.volume.booted(opened.generation)
        return verdict, talk, opened

    def _appraise(self, talk: Conversation) -> Verdict:
        try:
            expected = Expected.of(self.config, talk.report_data, never=self._never)
            return self._verify(talk.evidence, expected, talk.at)
        except Refused as refused:
            keep_refused(self._output, talk, refused, self.config)
            raise
