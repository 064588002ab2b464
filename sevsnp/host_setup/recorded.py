# SPDX-License-Identifier: Apache-2.0
"""A recorded host: a directory with the files of /proc and /sys that tell whether a machine can start SEV-SNP guests.

    proc/…, sys/…      as on the host; of proc/cpuinfo the first processor alone
    dmesg              the lines of the kernel log that concern SEV, the RMP, the IOMMU, KVM and the boot
    platform_status    SNP_PLATFORM_STATUS, 64 hex digits
    qemu_version       the first line of `qemu-system-x86_64 --version`
    qemu.log           optional: what QEMU printed when a guest did not start
    record.json        what has no file: which parts the host lacks, which could not be read, and the two devices

A part that is neither there nor listed as lacking is unknown. A recording may come from another person, so links that
lead out of it are not followed, and its files are small.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system.files import each_key_once

FORMAT = 1
RECORD = "record.json"
CPUINFO = "proc/cpuinfo"
CMDLINE = "proc/cmdline"
RELEASE = "proc/sys/kernel/osrelease"
PARAMETERS = {name: f"sys/module/kvm_amd/parameters/{name}" for name in ("sev", "sev_es", "sev_snp")}
EFI = "sys/firmware/efi/fw_platform_size"
ASIDS = "sys/fs/cgroup/misc.capacity"
IOMMU_FEATURES = "sys/class/iommu/*/amd-iommu/features"
DMI = {
    name: f"sys/class/dmi/id/{name}"
    for name in ("sys_vendor", "product_name", "board_name", "bios_vendor", "bios_version", "bios_date")
}
KERNEL_LOG = "dmesg"
STATUS = "platform_status"
QEMU_VERSION = "qemu_version"
QEMU_LOG = "qemu.log"
# What a recorder copies as it is.
FILES = (CMDLINE, RELEASE, *PARAMETERS.values(), EFI, ASIDS, *DMI.values())
PARTS = (CPUINFO, *FILES, IOMMU_FEATURES, KERNEL_LOG, STATUS, QEMU_VERSION, QEMU_LOG)
DEVICES = ("/dev/kvm", "/dev/sev")
DEVICE_STATES = ("usable", "no rights", "absent")

_LARGEST = 1 << 20


@dataclass(frozen=True)
class Host:
    """What is known of a host.

    ``texts``: the content of each part that was read, by its path in the recording. ``absent``: the parts that the host
    has not. ``unreadable``: the parts that could not be read there, each with the reason. ``devices``: usable, no
    rights, or absent.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)

    def text(self, part: str) -> str:
        """The content of ``part`` without blanks around it; empty if it is not known."""
        return self.texts.get(part, "").strip()

    def unknown(self, part: str) -> str:
        """Why ``part`` is not known."""
        return self.unreadable.get(part, "not recorded")


def read_host(tree: Path) -> Host:
    """Read the recording in the directory ``tree``. Raises :class:`UserError` if it is none."""
    hint = "record it on that host, where it is then in build/host_record: ./doitw check_host"
    if not tree.is_dir():
        raise UserError(f"{tree}: no such directory, expected a recorded host", hint)
    document = _document(tree, hint)
    texts = {part: found for part in PARTS if (found := _read(tree, part)) is not None}
    return Host(texts, frozenset(document["absent"]), document["unreadable"], document["devices"])


def _document(tree: Path, hint: str) -> dict[str, Any]:
    """record.json: its lists are complete, its parts and its device states are known ones."""
    path = tree / RECORD
    try:
        path.lstat()
        found = json.loads(_inside(tree, path).read_bytes(), object_pairs_hook=each_key_once)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected the record of a host", hint) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not the JSON of a recorded host: {error}", hint) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path}: format: expected {FORMAT}, the only one that is known", hint)
    expected: dict[str, tuple[type[list[str]] | type[dict[str, str]], tuple[str, ...]]] = {
        "absent": (list, PARTS), "unreadable": (dict, PARTS), "devices": (dict, DEVICES),
    }  # fmt: skip
    for name, (kind, known) in expected.items():
        value = found.setdefault(name, kind())
        if not isinstance(value, kind) or not all(one in known for one in value):
            raise UserError(f"{path}: {name}: found {value!r:.80}, expected parts of a recorded host", hint)
    if not all(isinstance(why, str) for why in found["unreadable"].values()):
        raise UserError(f"{path}: unreadable: expected a reason for each part", hint)
    if wrong := [state for state in found["devices"].values() if state not in DEVICE_STATES]:
        raise UserError(f"{path}: devices: found {wrong[0]!r}, expected {', '.join(DEVICE_STATES)}", hint)
    return found


def _read(tree: Path, part: str) -> str | None:
    """The text of a part; several files of one part have a line each."""
    texts = [_inside(tree, path).read_text(errors="replace") for path in sorted(tree.glob(part))]
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts) if texts else None


def _inside(tree: Path, path: Path) -> Path:
    """The file ``path`` of the recording ``tree``. Raises UserError if it leads out of it, or is large."""
    place = path.resolve()
    if not place.is_relative_to(tree.resolve()) or not place.is_file():
        raise UserError(f"{path}: not a file of the recording", "remove it from the recording")
    if place.stat().st_size > _LARGEST:
        raise UserError(f"{path}: larger than {_LARGEST} bytes", "shorten it to the lines that concern SEV-SNP")
    return place
