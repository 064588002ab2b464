# SPDX-License-Identifier: Apache-2.0
"""`update_luks` and `adopt_luks`: an existing volume gets VM configs of the present build, or its own directory."""

import fcntl
import hashlib
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from sevsnp.errors import UserError
from sevsnp.images.luks2 import Luks2, check_ours, opens
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Key, Record
from sevsnp.measurement.make_cmdline import make_luks_cmdline
from sevsnp.measurement.make_config import make_vm_config
from sevsnp.measurement.signed_config import sign_configs
from sevsnp.qemu.appliance import Appliance, ApplianceDisk, fields, run_job
from sevsnp.system.command import temporary_directory
from sevsnp.system.copying import copy_file
from sevsnp.volumes.directory import CONFIGS, DIGESTS, HEADER, Source, Volume, choose

# The dm-crypt and dm-integrity tables of our volumes, as dmsetup prints them; the numbers are sizes and positions.
_CRYPT = re.compile(
    r"0 \d+ crypt capi:authenc\(hmac\(sha256\),xts\(aes\)\)-random 0{192} 0 \d+:\d+ 0 2 "
    r"integrity:48:aead sector_size:4096"
)
_INTEGRITY = re.compile(
    r"0 \d+ integrity \d+:\d+ 2048 48 J 7 block_size:4096 journal_sectors:\d+ interleave_sectors:32768 "
    r"buffer_sectors:128 journal_watermark:50 commit_time:10000 fix_padding"
)
_F_OFD_GETLK = 36
_LOCK_QUERY = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclass(frozen=True)
class Boot:
    """The files that a guest boots with in the present build, and the settings of its VM config."""

    template: Path
    firmware: Path
    kernel: Path
    initrd: Path
    emulated_initrd: Path
    owner_certificate: Path
    acpi: bool
    reports: str
    dns: str
    settings: Mapping[str, Any]
    id_key: Path | None
    author_key: Path | None
    # What the kernel is made of if it is a stage: the arguments stage_* of make_vm_config.
    stage: Mapping[str, Path] = field(default_factory=dict)

    def make(self, directory: Path, image: Path) -> Source:
        """Write VM configs, production and emulated, for the volume on ``image`` into ``directory``, with their
        files. The volume's header and digests are in ``directory``.
        """
        for name, platform, initrd in zip(
            CONFIGS, ("snp", "emulated"), (self.initrd, self.emulated_initrd), strict=True
        ):
            cmdline = directory / f"cmdline{'.emulated' if platform == 'emulated' else ''}"
            make_luks_cmdline(
                header=directory / HEADER,
                header_digest=directory / DIGESTS[0],
                tables_digest=directory / DIGESTS[1],
                owner_certificate=self.owner_certificate,
                acpi=self.acpi,
                reports=self.reports,
                dns=self.dns,
                platform=platform,
                output=cmdline,
            )
            make_vm_config(
                template=self.template,
                workflow="luks",
                platform=platform,
                firmware=self.firmware,
                kernel=self.kernel,
                initrd=initrd,
                cmdline=cmdline,
                disks={"luks": "image"},
                owner_certificate=self.owner_certificate,
                settings=dict(self.settings),
                place=str(directory / name),
                output=directory / name,
                shown=name,
                image=image,
                **self.stage,
            )
        if not self.id_key:
            return Source(directory, directory)
        signed = directory / "idblock"
        sign_configs(
            configs=[directory / name for name in CONFIGS],
            id_key=self.id_key,
            author_key=self.author_key,
            template=self.template,
            output=signed,
        )
        return Source(directory, signed)


def update_volume(*, directory: Path, configs: Path, data_dir: Path, volume: str, boot: Mapping[str, Any]) -> None:
    """`update_luks`: the volume boots with the present kernel, initramfs, firmware and settings; its disk stays.

    Raises UserError while a guest runs on it.
    """
    source = Source(directory, configs)
    chosen = choose(data_dir, source, volume, "update_luks")
    if not chosen.exists:
        raise UserError(
            f"volume {chosen.uuid}: no guest has run on it, so there is nothing to keep", "run: ./doitw setup_luks"
        )
    with chosen.locked(), temporary_directory("sevsnp-volume-") as scratch:
        for name in (HEADER, *DIGESTS):
            copy_file(chosen.path / name, scratch / name, 0o600)
        made = Boot(**boot).make(scratch, chosen.image)
        # The files that setup_luks made of the same volume count again only when setup_luks makes different ones.
        own = source.uuid == chosen.uuid and source.whole
        changed = chosen.refresh(made, taken=source.digest() if own else "")
    state = "boots with what is built now" if changed else "up to date, nothing to do"
    print(f"volume {chosen.uuid}: {state}: ./doitw run_sev_snp_luks VOLUME={chosen.uuid}")


def adopt_volume(
    *,
    image: Path | None,
    directory: Path,
    data_dir: Path,
    config_dir: Path,
    key_file: str,
    boot: Mapping[str, Any],
    appliance: Mapping[str, Path],
) -> None:
    """`adopt_luks`: make a directory for the volume on the disk ``image``, which is copied and not changed.

    ``directory`` is where setup_luks may have its own files of the same volume. A host may have changed the disk, so
    its header and its device-mapper tables must be of the one kind that setup_luks makes. Raises UserError.
    """
    if image is None:
        raise UserError("IMAGE: not set, expected the disk of an encrypted guest", "choose one: IMAGE=…/luks.img")
    if not image.is_file():
        raise UserError(f"{image}: no such file, expected the disk of an encrypted guest", "give another: IMAGE=…")
    try:
        luks = Luks2.read(image)
    except UserError as error:
        raise UserError(f"{image}: {error.message}", "expected luks.img of an encrypted guest: IMAGE=…") from None
    new = Volume.of(data_dir, luks.uuid)
    if new.path.exists():
        raise new.exists_error()
    check_ours(luks)
    _check_unused(image)
    key = _key(luks, image, config_dir, key_file)
    with temporary_directory("sevsnp-volume-") as scratch:
        (scratch / HEADER).write_bytes(luks.data)
        (scratch / DIGESTS[0]).write_text(hashlib.sha256(luks.data).hexdigest() + "\n")
        (scratch / DIGESTS[1]).write_text(_tables(image, luks, directory, key, Appliance(**appliance), scratch) + "\n")
        new.make(Boot(**boot).make(scratch, image))
    print(f"volume {luks.uuid}: a copy of {image} is in {new.path}; {image} is as it was, and needed no more")
    print(f"boot it: ./doitw run_sev_snp_luks VOLUME={luks.uuid}")


def _key(luks: Luks2, image: Path, config_dir: Path, key_file: str) -> Key:
    """The key that opens the volume. A volume that is unknown here gets a record if its key is given."""
    key = luks_key.given(key_file)
    known = luks.uuid in luks_key.known_volumes(config_dir)
    if key is None:
        if not known:
            raise UserError(
                f"{image}: volume {luks.uuid}: neither its key nor its record is in {config_dir / 'volumes'}",
                "set CONFIG_DIR to where it was made, or give its key: LUKS_KEY_FILE=…",
            )
        if luks_key.read_record(config_dir, luks.uuid).key == "given":
            raise UserError(
                f"{image}: volume {luks.uuid}: made with a key of your own, and none is given",
                f"LUKS_KEY_FILE=… ./doitw adopt_luks IMAGE={quote(str(image))}",
            )
        key = luks_key.read_made_key(config_dir, luks.uuid)
    if not opens(luks.data, key.data):
        raise UserError(f"{key.source}: this key does not open {image}", "give the right one: LUKS_KEY_FILE=…")
    if known:
        luks_key.read_record(config_dir, luks.uuid)
    else:
        luks_key.write_record(config_dir, luks.uuid, Record("given", sent=True))
        print(f"volume {luks.uuid}: not known here before, so how often it was booted is not known either", flush=True)
    return key


def _tables(image: Path, luks: Luks2, directory: Path, key: Key, appliance: Appliance, scratch: Path) -> str:
    """The digest of the volume's device-mapper tables: from setup_luks if it has the volume, else by the appliance."""
    made = directory / HEADER
    if made.is_file() and made.read_bytes() == luks.data and (directory / DIGESTS[1]).is_file():
        return (directory / DIGESTS[1]).read_text().strip()
    disk = ApplianceDisk("luks", image, overlay=scratch / "changes.qcow2")
    found = run_job(appliance, "luks_tables", {}, disks=[disk], secret=key.data)
    crypt, integrity, tables = fields(found, str(image), dict.fromkeys(("crypt", "integrity", "tables"), str))
    check_tables(image, crypt, integrity)
    return str(tables)


def check_tables(image: Path, crypt: str, integrity: str) -> None:
    """Raises UserError unless these are the kernel's tables for a volume as setup_luks makes it.

    A part of them comes from the superblock behind the header, which the host of a disk can write.
    """
    for name, form, found in (("crypt", _CRYPT, crypt.strip()), ("integrity", _INTEGRITY, integrity.strip())):
        if not form.fullmatch(found):
            raise UserError(
                f"{image}: its {name} table is not made by this project: {found[:300]}",
                "use an older copy of this disk: this one was changed",
            )


def _check_unused(image: Path) -> None:
    """Raises UserError for a disk that a QEMU has open: QEMU locks bytes of each disk that it may write to."""
    with image.open("rb") as stream:
        try:
            answer = fcntl.fcntl(stream.fileno(), _F_OFD_GETLK, _LOCK_QUERY)
        except OSError:
            return  # the file system has no locks
    kind, *_ = struct.unpack("hhqqi", answer)
    if kind != fcntl.F_UNLCK:
        raise UserError(f"{image}: a guest runs on it", "end it first: ./doitw stop")
