# SPDX-License-Identifier: Apache-2.0
"""The guest that an export describes: a VM config, checked as for a launch, and the launch digest of its files."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shlex import quote

from sevsnp.errors import UserError
from sevsnp.host.volume import on_copy
from sevsnp.measurement.id_block import Identity, check_identity
from sevsnp.measurement.launch_digest import launch_digest_of
from sevsnp.qemu.process import check_files
from sevsnp.qemu.snp_options import check_snp, identity_of
from sevsnp.vm_config.cmdline import read_cmdline
from sevsnp.vm_config.config import Disk, File, Launch, VmConfig, making, read_vm_config
from sevsnp.vm_config.fixed import check_fixed
from sevsnp.vm_config.relocate import relocated

_VOLUME_IMAGE = "luks.img"


@dataclass(frozen=True)
class Guest:
    """A checked guest. ``launch`` has the files' paths on the host that launches it; ``memory`` is in bytes.

    ``cmdline`` is the measured command line, ``digest`` the launch digest (48 bytes) that these files give.
    """

    name: str
    source: Path
    launch: Launch
    identity: Identity | None
    cmdline: str
    digest: bytes
    memory: int

    @property
    def read_only(self) -> bool:
        """Whether the guest's disks are read-only."""
        return self.launch.workflow == "verity"

    @property
    def host_data(self) -> str:
        """HOST_DATA in base64."""
        return base64.b64encode(self.launch.host_data).decode()

    @property
    def id_block(self) -> str:
        """The ID block in base64; empty if there is none."""
        return base64.b64encode(self.identity.block.encode()).decode() if self.identity else ""

    @property
    def id_auth(self) -> str:
        """The ID authentication in base64; empty if there is none."""
        return base64.b64encode(self.identity.auth.encode()).decode() if self.identity else ""

    @property
    def has_author(self) -> bool:
        """Whether the launch must set AUTHOR_KEY_EN."""
        return bool(self.identity and self.identity.auth.has_author)


def read_guest(
    *, vm_config: Path, asked: Mapping[str, int | str], name: str, memory: int, files: str, launcher: str
) -> Guest:
    """Read a VM config and check it, its files, and its ID block, as a launch and the secure processor would.

    ``asked`` are the settings of this run; those that the VM config fixes must be equal. ``files`` is the directory of
    the guest's files on the host that launches it, under their own names; if it is empty, they are where they are here.
    Raises :class:`UserError`; for an emulated VM config, too, because ``launcher`` would run it without protection.
    """
    config = read_vm_config(vm_config)
    launch = config.launch
    if launch.platform != "snp":
        production = vm_config.with_name(vm_config.name.replace(".emulated", ""))
        raise UserError(
            f"{vm_config}: an emulated VM config: {launcher} would run this guest unprotected, expected platform snp",
            f"give the one for SEV-SNP: VM_CONFIG={quote(str(production))}",
        )
    check_fixed(config, asked)
    check_snp(launch)
    launch = _with_checked_files(config)
    digest = launch_digest_of(launch)
    if config.reference and config.reference.launch_digest != digest:
        raise UserError(
            f"{vm_config}: reference.launch_digest: found {config.reference.launch_digest.hex()}, "
            f"its files give {digest.hex()}",
            f"make the VM config again with: {making(vm_config, launch.workflow)}",
        )
    identity = identity_of(launch)
    if identity:
        check_identity(identity, digest, launch.guest_policy)
    cmdline = read_cmdline(launch.cmdline.path)
    return Guest(
        name=name or f"sevsnp-{launch.workflow}",
        source=vm_config,
        launch=_placed(launch, files) if files else launch,
        identity=identity,
        cmdline=cmdline,
        digest=digest,
        memory=memory >> 20 << 20,
    )


def _with_checked_files(config: VmConfig) -> Launch:
    launch = config.launch
    if launch.workflow == "verity":
        if launch.written:
            raise UserError(
                f"{config.source}: its guest has a data disk, which no export describes",
                "make a guest without one: ./doitw setup_verity DATA_SIZE=0",
            )
        check_files(launch)
        return launch
    # The image that setup_luks made stays unchanged, so that it can be copied again: only a volume's disk may be
    # written.
    volume = config.source.absolute().parent
    if volume.parent.name != "volumes" or not (volume / _VOLUME_IMAGE).is_file():
        raise UserError(
            f"{config.source}: its guest writes to its disk, expected the VM config of a volume that exists",
            "a volume's VM config is beside its disk: docs/launchers.md",
        )
    return on_copy(launch, volume)


def _placed(launch: Launch, files: str) -> Launch:
    """The launch with every file in the directory ``files`` of another host; its paths are not looked up here."""
    directory = PurePosixPath(files)
    if not directory.is_absolute():
        raise UserError(f"EXPORT_FILES={files}: expected an absolute path: that of the host that launches the guest")
    names: dict[str, Path] = {}

    def place(file: File | Disk) -> Path:
        if names.setdefault(file.path.name, file.path) != file.path:
            raise UserError(f"{file.path}: a second file named {file.path.name}, which EXPORT_FILES cannot tell apart")
        return Path(directory / file.path.name)

    return relocated(launch, place)


def check_text(name: str, texts: Iterable[str]) -> None:
    """Refuse text that an XML or YAML document cannot hold: control characters, surrogates, U+FFFE and U+FFFF."""
    for text in texts:
        bad = next((char for char in text if not _is_allowed(ord(char))), None)
        if bad is not None:
            raise UserError(f"{text!r}: found the character {ord(bad):#x}, which has no place in {name}")


def _is_allowed(code: int) -> bool:
    return 0x20 <= code < 0x7F or 0xA0 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or code > 0xFFFF


def refuse(guest: Guest, launcher: str, found: Mapping[str, str]) -> None:
    """Raise :class:`UserError` with every field that a launcher cannot express, each with the reason, if any."""
    if found:
        lines = "".join(f"\n  {field}: {reason}" for field, reason in found.items())
        raise UserError(
            f"{guest.source}: {launcher} would launch another guest:{lines}",
            "which launcher can do what: docs/launchers.md",
        )
