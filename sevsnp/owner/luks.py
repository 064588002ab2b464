# SPDX-License-Identifier: Apache-2.0
"""`attest_luks`: verify a guest that waits for its key, and send the key only to one that may have it."""

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
from sevsnp.owner.kept import Conversation
from sevsnp.owner.key_release import Secret, connect, owner_context, release
from sevsnp.owner.login import Login, Verdict
from sevsnp.vm_config.config import read_vm_config
from sevsnp.vm_config.fixed import check_fixed


def check_release(domain: str, record: Record, *, emulated_asked: bool, again: str = "./doitw attest_luks") -> None:
    """Refuse a key that a guest of this trust domain (amd or emulated) must not have.

    ``emulated_asked``: the user said PLATFORM=emulated for this very run. A software secure processor keeps nothing
    from the host, so what was sent to one host is not for a confidential guest any more. ``again`` is the command that
    asks for the key.
    """
    if domain == "amd":
        if record.exposed:
            raise UserError(
                "this volume's key was sent to an emulated guest, whose host could have kept it",
                f"is the guest an emulated one? say so: {again} PLATFORM=emulated — "
                "for SEV-SNP make a volume with another key: ./doitw setup_luks PLATFORM=snp",
            )
    elif domain == "emulated":
        if record.key != "made" and not emulated_asked:
            raise UserError(
                "a key of your own is not sent to an emulated guest, which keeps nothing from its host",
                "if its host may have the key, say so: PLATFORM=emulated",
            )
    else:
        raise UserError(f"found trust domain {domain!r}, expected amd or emulated")


class Volume:
    """A volume as its owner has it: header, key and record. Raises UserError where the key does not open it."""

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
                f"{header}: made with a key of your own, and none is given", "LUKS_KEY=… ./doitw attest_luks"
            )
        if not opens(luks.data, key.data):
            raise UserError(f"{key.source}: this key does not open {header}", "nothing was sent; give the right key")
        self._key = key.data

    def secret_for(self, verdict: Verdict, *, emulated_asked: bool) -> Secret:
        """What this verdict releases. Who gets it is on record before it has it."""
        domain = trust_domain(verdict)
        # Read again: another attestation may have changed it meanwhile.
        self.record = luks_key.read_record(self.config_dir, self.uuid)
        check_release(domain, self.record, emulated_asked=emulated_asked)
        emulated = domain == "emulated"
        self.record = luks_key.update_record(self.config_dir, self.uuid, exposed=emulated, sent=not emulated)
        return Secret(self.digest, self.record.generation, self._key)

    def booted(self, generation: int) -> None:
        """Keep the generation that a guest has reported."""
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
    wait: Callable[[], None] | None = None,
) -> None:
    """Verify the guest at ``host``:``port``, send it the key of the volume with ``header``, and let ssh know its key.

    ``asked`` are the settings given for this run. What was accepted before is replaced by what is accepted, and by
    nothing else; the evidence is kept, accepted or not (sevsnp.owner.kept).
    What a ``manifest`` that ``manifest_key`` has signed lists as never to be accepted is refused.
    ``wait`` is called when all that can be checked without the guest is.
    ``key_dir`` is where the volume's key and record are; ``config_dir`` where it is None. ``key_file`` None: no key
    that was given for this run counts. ``again`` is the command that this is, for a hint. Raises :class:`UserError`;
    a key was sent only where the evidence was accepted.
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
    # What the verdict will be refused for in any case is said before the guest is spoken to.
    domain = "amd" if config.launch.platform == "snp" else "emulated"
    check_release(domain, volume.record, emulated_asked=emulated_asked, again=again)
    verify = verifier(config, emulated_root)
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
