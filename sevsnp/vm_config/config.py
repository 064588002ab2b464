# SPDX-License-Identifier: Apache-2.0
"""The VM config: one file with all values that launch and attestation need.

A host needs ``[launch]``, ``[files]`` and ``[[disk]]`` to start the guest. The owner's verifier compares evidence with
``[reference]``, which never leaves the owner. A host bundle contains a file without ``[reference]``.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from sevsnp.errors import UserError
from sevsnp.system.template import find_template, text_template
from sevsnp.system.toml_loader import read as read_toml

if TYPE_CHECKING:
    from sevsnp.vm_config.floors import Floor

Product = Literal["Milan", "Genoa", "Turin"]
PlatformName = Literal["snp", "emulated"]
FORMAT = 1
_REASON = r"[^\x00-\x1f\x7f]{1,300}"
# Shown for every emulated guest, and for every verdict about one.
BANNER = "EMULATED – NOT CONFIDENTIAL"
TEMPLATE = find_template("vm-config.toml.j2")


class File(NamedTuple):
    """A file by path (absolute once read) and SHA-256 (64 lower-case hex digits)."""

    path: Path
    sha256: str


class Disk(NamedTuple):
    """A virtio disk; ``role`` is the serial number by which the guest finds it, ``size`` is in bytes."""

    role: str
    path: Path
    size: int
    sha256: str


# The roles of disks that a guest writes to: the encrypted root, and the data disk of a verified guest.
WRITTEN = ("luks", "data")


@dataclass(frozen=True)
class Launch:
    """The values for the host: the inputs of the launch digest, the disks, and an ID block with its authentication.

    ``firmware_reason`` is the owner's reason to trust a firmware that is not known to start only the measured files
    (sevsnp.firmware.gate); empty for every other firmware.
    """

    workflow: str
    platform: PlatformName
    product: Product
    vcpus: int
    vcpu_model: str
    guest_policy: int
    guest_features: int
    host_data: bytes
    firmware: File
    kernel: File
    initrd: File
    cmdline: File
    disks: tuple[Disk, ...]
    id_block: File | None = None
    id_auth: File | None = None
    firmware_reason: str = ""

    @property
    def written(self) -> Disk | None:
        """The disk that the guest writes to, and whose key its owner sends; None if it has none."""
        return next((disk for disk in self.disks if disk.role in WRITTEN), None)


@dataclass(frozen=True)
class Tcb:
    """A TCB version by component, each 0–255; ``fmc`` exists on Turin only and is None elsewhere."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    def setting(self) -> str:
        """In the form of the setting MIN_TCB: ``bootloader:3,tee:0,snp:8,microcode:115``, every component by name."""
        return ",".join(f"{name}:{value}" for name, value in vars(self).items() if value is not None)

    def is_zero(self) -> bool:
        """Whether every component is zero; such a floor would refuse nothing."""
        return not any(vars(self).values())


# The minimum TCB version to accept: a floor, explicitly any version, or None if it was not stated.
# A tuple has floors for single kinds of processor.
MinimumTcb = Tcb | tuple["Floor", ...] | Literal["any"] | None


class Stage(NamedTuple):
    """What the launched kernel is made of if it is a stage (sevsnp.stage): the SHA-256 of each part, as in a File."""

    code: str
    tables: str
    kernel: str


@dataclass(frozen=True)
class Reference:
    """Reference values for the verifier (RFC 9334): what the evidence must say.

    ``launch_digest`` 48 bytes, ``family_id`` and ``image_id`` 16 bytes each. ``platform_info_required`` and
    ``platform_info_forbidden`` are masks over PLATFORM_INFO. ``acpi`` says that the guest runs the host's AML code;
    evidence does not show this, so every verdict names it. With a ``stage`` it runs none. The key digests
    (48 bytes) are those of the ID block, zero without an ID block. Without a ``minimum_tcb`` the production verifier
    accepts no evidence.
    """

    launch_digest: bytes
    minimum_tcb: MinimumTcb
    vmpl: int
    guest_svn: int
    family_id: bytes
    image_id: bytes
    platform_info_required: int
    platform_info_forbidden: int
    acpi: bool = False
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    stage: Stage | None = None


@dataclass(frozen=True)
class VmConfig:
    """A whole VM config; ``reference`` is None in a host bundle. ``policy`` is the unparsed table ``[policy]``."""

    source: Path
    launch: Launch
    reference: Reference | None = field(repr=False)
    policy: Mapping[str, Any] = field(default_factory=lambda: {"profile": "default"}, repr=False)

    def require_reference(self) -> Reference:
        """The reference values. Raises :class:`UserError` for a host bundle's file, which has none."""
        if self.reference is None:
            raise UserError(
                f"{self.source}: no [reference]: this is a host bundle's launch file, expected the owner's VM config",
                f"give the file that setup_{self.launch.workflow} wrote: "
                f"VM_CONFIG=build/{self.launch.workflow}/vm-config-{self.launch.workflow}.toml",
            )
        return self.reference


_NOTHING = object()
_HEX = frozenset("0123456789abcdef")


class _Table:
    """A TOML table that is read field by field; at the end no field may be left."""

    def __init__(self, source: Path, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise UserError(f"{source}: {name}: found {values!r}, expected a table")
        self.source, self.name, self.values = source, name, dict(values)

    def error(self, key: str, found: Any, expected: str) -> UserError:
        shown = f"{self.name}.{key}" if self.name else key
        found = "nothing" if found is _NOTHING else repr(found)
        return UserError(f"{self.source}: {shown}: found {found}, expected {expected}")

    def take(self, key: str, expected: str) -> Any:
        if key not in self.values:
            raise self.error(key, _NOTHING, expected)
        return self.values.pop(key)

    def integer(self, key: str, low: int, high: int) -> int:
        expected = f"an integer from {low} to {high:#x}"
        value = self.take(key, expected)
        if isinstance(value, str) and re.fullmatch(r"0x[0-9a-f]{1,16}", value):
            value = int(value, 16)  # a TOML integer has 63 bits and a sign; a mask needs 64 bits
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, value, expected)
        return value

    def text(self, key: str, pattern: str, expected: str) -> str:
        value = self.take(key, expected)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise self.error(key, value, expected)
        return value

    def boolean(self, key: str) -> bool:
        value = self.take(key, "true or false")
        if type(value) is not bool:
            raise self.error(key, value, "true or false")
        return value

    def hex(self, key: str, length: int) -> bytes:
        expected = f"{2 * length} lower-case hex digits ({length} bytes)"
        value = self.take(key, expected)
        if not isinstance(value, str) or len(value) != 2 * length or not _HEX.issuperset(value):
            raise self.error(key, value, expected)
        return bytes.fromhex(value)

    def path(self, key: str) -> Path:
        value = self.text(key, r"[^\x00-\x1f\x7f]+", "a path without control characters")
        return (self.source.parent / value).resolve()

    def table(self, key: str) -> "_Table":
        return _Table(self.source, f"{self.name}.{key}" if self.name else key, self.take(key, "a table"))

    def end(self) -> None:
        for key, value in self.values.items():
            raise self.error(key, value, "no such key")


def read_vm_config(source: Path) -> VmConfig:
    """Read and validate a VM config. Raises :class:`UserError` that names an unknown key or a wrong type or value."""
    try:
        document = read_toml(source)
    except FileNotFoundError:
        workflow = "luks" if "luks" in source.name else "verity"
        raise UserError(f"{source}: no such VM config", f"make one with: {making(source, workflow)}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{source}: not a VM config: {error}") from error
    return parse_vm_config(document, source)


def making(source: Path, workflow: str) -> str:
    """The command that makes the VM config ``source``, or one of the files beside it."""
    for directory in source.parents:
        if directory.parent.name == "volumes" and len(directory.name) == 36:
            return f"./doitw update_luks VOLUME={directory.name}"
    if source.parent.name == "idblock":
        return f"./doitw idblock:{workflow} ID_KEY=FILE"
    return f"./doitw setup_{workflow}"


def parse_vm_config(document: Mapping[str, Any], source: Path) -> VmConfig:
    """Like :func:`read_vm_config`, for a parsed TOML document. Relative paths start at the directory of ``source``."""
    top = _Table(source, "", document)
    top.integer("format", FORMAT, FORMAT)
    launch = _read_launch(top)
    reference = _read_reference(top.table("reference"), launch.product) if "reference" in top.values else None
    policy = dict(top.table("policy").values) if "policy" in top.values else {"profile": "default"}
    top.end()
    return VmConfig(source, launch, reference, policy)


def _read_launch(top: _Table) -> Launch:
    table = top.table("launch")
    files = top.table("files")
    reasoned = "firmware_reason" in table.values
    launch = Launch(
        workflow=table.text("workflow", "verity|luks", "verity or luks"),
        platform=cast(PlatformName, table.text("platform", "snp|emulated", "snp or emulated")),
        product=cast(Product, table.text("product", "Milan|Genoa|Turin", "Milan, Genoa or Turin")),
        vcpus=table.integer("vcpus", 1, 255),
        vcpu_model=table.text("vcpu_model", r"[A-Za-z0-9][A-Za-z0-9._-]*", "a QEMU CPU model"),
        guest_policy=table.integer("guest_policy", 0, (1 << 64) - 1),
        guest_features=table.integer("guest_features", 0, (1 << 64) - 1),
        host_data=table.hex("host_data", 32),
        firmware=_read_file(files, "firmware"),
        kernel=_read_file(files, "kernel"),
        initrd=_read_file(files, "initrd"),
        cmdline=_read_file(files, "cmdline"),
        disks=_read_disks(top),
        **{key: _read_file(files, key) for key in ("id_block", "id_auth") if key in files.values},
        firmware_reason=table.text("firmware_reason", _REASON, "a sentence") if reasoned else "",
    )
    if (launch.id_block is None) != (launch.id_auth is None):
        raise files.error("id_block and id_auth", "one of them", "both or neither")
    table.end()
    files.end()
    return launch


def _read_file(files: _Table, key: str) -> File:
    table = files.table(key)
    file = File(table.path("path"), table.hex("sha256", 32).hex())
    table.end()
    return file


def _read_disks(top: _Table) -> tuple[Disk, ...]:
    found = top.take("disk", "an array of tables")
    if not isinstance(found, list):
        raise top.error("disk", found, "an array of tables")
    disks: list[Disk] = []
    for number, values in enumerate(found):
        table = _Table(top.source, f"disk[{number}]", values)
        # A virtio-blk serial number has at most 20 bytes.
        role = table.text("role", r"[a-z][a-z0-9-]{0,19}", "a disk role of at most 20 characters")
        if role in {disk.role for disk in disks}:
            raise table.error("role", role, "each role once")
        disks.append(Disk(role, table.path("path"), table.integer("size", 1, 1 << 50), table.hex("sha256", 32).hex()))
        table.end()
    return tuple(disks)


def _read_reference(table: _Table, product: Product) -> Reference:
    reference = Reference(
        launch_digest=table.hex("launch_digest", 48),
        minimum_tcb=_read_minimum_tcb(table, product),
        vmpl=table.integer("vmpl", 0, 3),
        guest_svn=table.integer("guest_svn", 0, (1 << 32) - 1),
        family_id=table.hex("family_id", 16),
        image_id=table.hex("image_id", 16),
        platform_info_required=table.integer("platform_info_required", 0, (1 << 64) - 1),
        platform_info_forbidden=table.integer("platform_info_forbidden", 0, (1 << 64) - 1),
        acpi=table.boolean("acpi"),
        id_key_digest=table.hex("id_key_digest", 48) if "id_key_digest" in table.values else bytes(48),
        author_key_digest=table.hex("author_key_digest", 48) if "author_key_digest" in table.values else bytes(48),
        stage=_read_stage(table.table("stage")) if "stage" in table.values else None,
    )
    if reference.acpi and reference.stage:
        raise table.error("acpi", True, "false: the stage removes the host's tables")
    table.end()
    return reference


def _read_stage(table: _Table) -> Stage:
    stage = Stage(*(table.hex(key, 32).hex() for key in Stage._fields))
    table.end()
    return stage


def _read_minimum_tcb(table: _Table, product: Product) -> MinimumTcb:
    """Read the minimum TCB. A floor of zeros counts as none: old VM configs had one before a minimum was required."""
    if "minimum_tcb" not in table.values:
        return None
    if isinstance(table.values["minimum_tcb"], str):
        table.text("minimum_tcb", "any", "a table, or any")
        return "any"
    if isinstance(table.values["minimum_tcb"], list):
        return _read_floors(table, product)
    parts = table.table("minimum_tcb")
    tcb = Tcb(
        bootloader=parts.integer("bootloader", 0, 255),
        tee=parts.integer("tee", 0, 255),
        snp=parts.integer("snp", 0, 255),
        microcode=parts.integer("microcode", 0, 255),
        fmc=parts.integer("fmc", 0, 255) if product == "Turin" else None,
    )
    parts.end()
    return None if tcb.is_zero() else tcb


def _read_floors(table: _Table, product: Product) -> tuple["Floor", ...]:
    from sevsnp.vm_config.floors import parse_floors

    entries = table.values.pop("minimum_tcb")
    try:
        floors = parse_floors(entries)
        if others := [floor for floor in floors if floor.processor.product != product]:
            found = others[0].processor
            raise ValueError(f"processors of {product}, and {found} is one of {found.product}")
    except ValueError as error:
        raise UserError(f"{table.source}: {table.name}.minimum_tcb: expected {error}") from None
    return floors


def render_vm_config(config: VmConfig, template: Path = TEMPLATE) -> str:
    """``config`` as the text of its file; paths are relative to the directory of ``config.source``.

    A config that could not be read back is refused here with the same errors as on reading.
    """
    import toml

    base = config.source.parent.resolve()
    text = text_template(template).render(
        launch=config.launch,
        reference=config.reference,
        relative=lambda path: os.path.relpath(path, base),
        policy=config.policy if config.reference else {},
        toml=toml.dumps,
    )
    try:
        text.encode()  # a path may not be UTF-8, but a TOML file must be
        parse_vm_config(tomllib.loads(text), config.source)
    except (UnicodeEncodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{config.source}: a path or name in it cannot be written to a TOML file: {error}") from error
    return text
