"""`attest_luks`: verify a guest that waits for its key, and send the key only to one that may have it."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from sevsnp import luks_key
from sevsnp.attestation.appraisal import Evidence, Expected, Refused
from sevsnp.errors import UserError
from sevsnp.files import write_atomic
from sevsnp.firmware.gate import check_launch_firmware
from sevsnp.images.luks2 import Luks2, opens
from sevsnp.key_paths import Keys
from sevsnp.key_release import Secret, connect, owner_context, release
from sevsnp.luks_key import Record
from sevsnp.owner import Login, Verdict, named_for, never_accepted, refusal, trust_domain, verifier
from sevsnp.vm.config import read_vm_config
from sevsnp.vm.fixed import check_fixed

_ANOTHER = "make a volume with another key: ./doitw setup_luks"


def check_release(domain: str, record: Record, *, emulated_asked: bool) -> None:
    """Refuse a key that a guest of this trust domain (amd or emulated) must not have.

    ``emulated_asked``: the user said PLATFORM=emulated for this very run. A software secure processor keeps nothing
    from the host, so what was sent to one host is not for a confidential guest any more.
    """
    if domain == "amd":
        if record.exposed:
            raise UserError("this volume's key was sent to an emulated guest, whose host could have kept it", _ANOTHER)
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

    def __init__(self, header: Path, config_dir: Path, key_file: str, *, throwaway: bool = False) -> None:
        luks = Luks2.read(header)
        self.uuid, self.digest = luks.uuid, hashlib.sha256(luks.data).digest()
        self.config_dir, self._throwaway = config_dir, throwaway
        self.record = luks_key.read_record(config_dir, luks.uuid)
        key = luks_key.given(key_file)
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
        """What this verdict releases. That a guest without a secure processor gets it is on record before it has it."""
        domain = trust_domain(verdict)
        # Read again: another attestation may have changed it meanwhile.
        self.record = luks_key.read_record(self.config_dir, self.uuid)
        check_release(domain, self.record, emulated_asked=emulated_asked)
        if domain == "emulated":
            self.record = luks_key.update_record(self.config_dir, self.uuid, exposed=True)
        return Secret(self.digest, 0 if self._throwaway else self.record.generation, self._key)

    def booted(self, generation: int) -> None:
        """Keep the generation that a guest has reported."""
        if not self._throwaway:
            self.record = luks_key.update_record(self.config_dir, self.uuid, generation=generation)


def attest_luks(
    *,
    vm_config: Path,
    header: Path,
    config_dir: Path,
    key_file: str,
    host: str,
    port: int,
    ssh_port: int,
    emulated_root: Path,
    user: str,
    template: Path,
    output: Path,
    report: Path,
    asked: Mapping[str, int | str] | None = None,
    throwaway: bool = False,
    manifest: Path | None = None,
    manifest_key: Path | None = None,
) -> None:
    """Verify the guest at ``host``:``port``, send it the key of the volume with ``header``, and let ssh know its key.

    ``asked`` are the settings given for this run. The report as it came is kept in ``report``, accepted or not; with an
    emulated VM config ``emulated`` is put into its name.
    What a ``manifest`` that ``manifest_key`` has signed lists as never to be accepted is refused.
    ``throwaway``: the disk is a fresh copy of the image, and nobody's: its generation is not the volume's. Raises
    :class:`UserError`; a key was sent only where the evidence was accepted.
    """
    keys, where = Keys.of(config_dir), f"{host}:{port}"
    login = Login(host, ssh_port, keys.user_private, user, template, output)
    login.forget()
    for emulated in (True, False):
        named_for(report, emulated=emulated).unlink(missing_ok=True)
    config = read_vm_config(vm_config)
    check_fixed(config, asked or {})
    if config.launch.workflow != "luks":
        raise UserError(f"{vm_config}: found the {config.launch.workflow} workflow, expected luks")
    config.require_reference()
    check_launch_firmware(config.launch)
    volume = Volume(header, config_dir, key_file, throwaway=throwaway)
    emulated_asked = (asked or {}).get("PLATFORM") == "emulated"
    # What the verdict will be refused for in any case is said before the guest is spoken to.
    domain = "amd" if config.launch.platform == "snp" else "emulated"
    check_release(domain, volume.record, emulated_asked=emulated_asked)
    verify = verifier(config, emulated_root)
    never = never_accepted(manifest, manifest_key)
    report = named_for(report, emulated=domain != "amd")

    def appraise(evidence: Evidence, report_data: bytes) -> Verdict:
        write_atomic(report, evidence.report)
        return verify(evidence, Expected.of(config, report_data, never=never), datetime.now(UTC))

    with connect(host, port, owner_context(keys.owner_certificate, keys.owner_private)) as connection:
        try:
            verdict, opened = release(
                connection,
                volume.digest,
                where,
                appraise=appraise,
                decide=lambda verdict: volume.secret_for(verdict, emulated_asked=emulated_asked),
            )
        except Refused as refused:
            raise refusal(refused, config, where) from None
        volume.booted(opened.generation)
    login.allow(verdict, config, opened.host_keys)
    print(f"the key of volume {volume.uuid} was sent; its root is open, generation {opened.generation}")
