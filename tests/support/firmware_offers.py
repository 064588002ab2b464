# SPDX-License-Identifier: Apache-2.0
"""A host's offers to a firmware: files by the names that the firmware itself contains, cards, disks and a network.

Each offer prints its own mark if it is ever run.
"""

import re
import struct
import subprocess
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from sevsnp.firmware.volumes import leaves
from sevsnp.qemu.confine import Access
from sevsnp.qemu.process import environment, escaped, start, stop
from sevsnp.qemu.qmp import Qmp
from sevsnp.system.command import run
from tests.support.efi_program import NOT_FOUND, card_rom, speaker
from tests.support.firmware_machine import added_file
from tests.support.hands import sockets

# The directory in which the firmware looks for the files beside the kernel.
BESIDE_KERNEL = "etc/boot/"
_ASCII_NAME = re.compile(rb"(?:etc|opt)/[\x21-\x7e]+")
_WIDE_NAME = re.compile(rb"(?:e\0t\0c\0|o\0p\0t\0)[/\\]\0(?:[\x21-\x7e]\0)+")
_ASCII_WORD = re.compile(rb"[A-Za-z0-9._-]{3,16}\0")
_WIDE_WORD = re.compile(rb"(?:[A-Za-z0-9._-]\0){3,16}\0\0")
_FILE_NODE = re.compile(rb"\x04\x04(..)", re.DOTALL)  # media device path, file path; then its length (16 bits)


def fw_cfg_names(image: bytes) -> list[str]:
    """Every name below etc/ and opt/ in the firmware's code, in 8-bit and in 16-bit characters; %d becomes 0."""
    found = set[str]()
    for leaf in leaves(image):
        found |= {name.decode() for name in _ASCII_NAME.findall(leaf.data)}
        found |= {name.decode("utf-16-le").replace("\\", "/") for name in _WIDE_NAME.findall(leaf.data)}
    return sorted(name.replace("%d", "0") for name in found)


def names_beside_kernel(image: bytes) -> list[bytes]:
    """All file names below etc/boot/ that may match a name in the firmware, as the bytes of an fw_cfg name.

    They are all words of the code that reads those files, and the file names in device paths anywhere. A name with
    other than ASCII characters is given in each way in which eight bits could be read as sixteen.
    """
    words = set[str]()
    for leaf in leaves(image):
        words |= set(_file_nodes(leaf.data))
        if BESIDE_KERNEL.encode() in leaf.data:
            words |= {word[:-1].decode() for word in _ASCII_WORD.findall(leaf.data)}
            words |= {word[:-2].decode("utf-16-le") for word in _WIDE_WORD.findall(leaf.data)}
    forms = {bytes(ord(one) & 255 for one in word) for word in words} | {word.encode() for word in words}
    forms |= {bytes(ord(one) >> 8 or ord(one) for one in word) for word in words}
    # The length limit of fw_cfg: 56 bytes including the end.
    longest = 55 - len(BESIDE_KERNEL)
    return sorted(form for form in forms if 0 < len(form) <= longest and not re.search(rb"[\0,]", form))


def _file_nodes(data: bytes) -> Iterator[str]:
    for node in _FILE_NODE.finditer(data):
        (length,) = struct.unpack("<H", node[1])
        text = data[node.end() : node.start() + length]
        if 8 <= length <= 120 and length % 2 == 0 and text.endswith(b"\0\0"):
            name = text.decode("utf-16-le", errors="replace").partition("\0")[0].strip("\\")
            if name.isprintable() and "\\" not in name and "\ufffd" not in name:
                yield name


def program(directory: Path, mark: str, *, driver: bool = False) -> Path:
    """A file with a program that prints ``mark``, and lets the firmware continue with the next offer."""
    path = directory / f"{re.sub('[^a-z0-9]', '-', mark.lower())}.efi"
    path.write_bytes(speaker(mark, status=NOT_FOUND, driver=driver))
    return path


def files_beside_kernel(directory: Path, names: Sequence[bytes]) -> dict[str, tuple[str, ...]]:
    """For each name, QEMU's options for a program under that name, by the mark that the program prints."""
    made = dict[str, tuple[str, ...]]()
    for number, name in enumerate(names):
        mark = f"file {number} runs"
        text = (BESIDE_KERNEL.encode() + name).decode(errors="surrogateescape")
        made[mark] = added_file(text, program(directory, mark))
    return made


# Options that a card's model needs besides its ROM: its own, and other QEMU options.
_QUIET = ("-audiodev", "none,id=quiet")
_CAN = ("-object", "can-bus,id=can")
_BMC = ("-device", "ipmi-bmc-sim,id=bmc")
_ROOM = ("-m", "slots=4,maxmem=4G")
_EMPTY = '{"driver":"null-co","node-name":"%s","size":1048576,"read-zeroes":true}'
_WANTED: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(("AC97", "ES1370", "virtio-sound-pci"), ("audiodev=quiet", _QUIET)),
    **dict.fromkeys(("ctucan_pci", "mioe3680_pci", "pcm3680_pci"), ("canbus0=can,canbus1=can", _CAN)),
    **dict.fromkeys(("pci-ipmi-bt", "pci-ipmi-kcs"), ("bmc=bmc", _BMC)),
    **{
        f"virtio-9p-pci{kind}": ("fsdev=tree,mount_tag=tree", ("-fsdev", "synth,id=tree"))
        for kind in ("", "-transitional", "-non-transitional")
    },
    **{
        f"virtio-blk-pci{kind}": (f"drive=empty{kind}", ("-blockdev", _EMPTY % f"empty{kind}"))
        for kind in ("", "-transitional", "-non-transitional")
    },
    "acpi-erst": ("memdev=erst", ("-object", "memory-backend-ram,id=erst,size=64K")),
    "cxl-type3": ("volatile-memdev=cxl", ("-object", "memory-backend-ram,id=cxl,size=256M")),
    "ivshmem-plain": ("memdev=shared", ("-object", "memory-backend-ram,id=shared,size=1M,share=on")),
    "kvaser_pci": ("canbus=can", _CAN),
    "nvme": ("serial=nvme", ()),
    "virtio-crypto-pci": ("cryptodev=crypto", ("-object", "cryptodev-backend-builtin,id=crypto")),
    "virtio-mem-pci": ("memdev=mem", ("-object", "memory-backend-ram,id=mem,size=128M", *_ROOM)),
    "virtio-pmem-pci": ("memdev=pmem", ("-object", "memory-backend-ram,id=pmem,size=128M,share=on", *_ROOM)),
}


# Models that QEMU does not start here, by the reason. The sweep fails for a new model that is missing here.
CANNOT_START = {
    "a part of a machine or of another device": (
        "ICH9-*", "PIIX3", "PIIX4_PM", "gpex-root", "i440FX", "igbvf", "mch", "piix4-isa",
    ),
    "a bridge, for which QEMU takes no ROM": (
        "cxl-downstream", "cxl-rp", "cxl-upstream", "i82801b11-bridge", "ioh3420", "pci-bridge*", "pcie-pci-bridge",
        "pcie-root-port", "x3130-upstream", "xio3130-downstream",
    ),
    "needs another machine": ("cxl-switch-mailbox-cci", "pxb", "pxb-cxl", "xen-platform"),
    "needs a device or a process beside QEMU": (
        "ivshmem-doorbell", "vfio-pci*", "vhost-*", "virtio-input-host-pci", "x-pci-proxy-dev",
    ),
}  # fmt: skip


def why_not(model: str) -> str:
    """Why a model is known not to start here; empty if it is not listed."""
    for reason, patterns in CANNOT_START.items():
        if any(fnmatchcase(model, pattern) for pattern in patterns):
            return reason
    return ""


def models_with_rom(qemu: Path, state: Path) -> list[str]:
    """Every PCI device model of this QEMU that accepts a ROM."""
    with sockets() as where:
        words = ["-machine", "none", "-display", "none", "-qmp", f"unix:{where.directory}/control,server=on,wait=off"]
        process = start(qemu, words, Access(everything=True), terminal=False, messages=state / "qemu.log")
        try:
            with Qmp(where.directory / "control", alive=lambda: process.poll() is None) as control:
                types = control.command("qom-list-types", implements="pci-device", abstract=False)
                names = sorted(one["name"] for one in types)
                return [name for name in names if _takes_rom(control, name)]
        finally:
            stop(process)


def _takes_rom(control: Qmp, name: str) -> bool:
    return any(one["name"] == "romfile" for one in control.command("device-list-properties", typename=name))


def starts(qemu: Path, words: Sequence[str]) -> str:
    """Why this QEMU does not start with the machine options ``words``; empty if it starts."""
    machine = ["-machine", "q35,smm=off", "-accel", "tcg", "-m", "512M", "-nodefaults", "-display", "none", "-S"]
    done = subprocess.run(
        [qemu, *machine, *words, "-monitor", "stdio"],
        env=environment(),
        input="quit\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def groups(qemu: Path, models: Sequence[str], directory: Path, most: int = 20) -> Iterator[list[str]]:
    """Groups of models that start together in one machine; every model starts alone."""
    parts = [list(models[start : start + most]) for start in range(0, len(models), most)]
    for part in parts:
        if len(part) == 1 or not starts(qemu, cards(part, directory)):
            yield part
        else:
            yield from groups(qemu, part, directory, (len(part) + 1) // 2)


def mark_of(model: str) -> str:
    return f"the program of a {model} runs"


def card(model: str, directory: Path) -> tuple[str, ...]:
    """QEMU's options for a card whose ROM contains a driver."""
    rom = directory / f"{model}.rom"
    rom.write_bytes(card_rom(speaker(mark_of(model), driver=True)))
    own, others = _WANTED.get(model, ("", ()))
    return (*others, "-device", ",".join(filter(None, (model, f"romfile={escaped(rom)}", own))))


def cards(models: Sequence[str], directory: Path) -> tuple[str, ...]:
    """The options for several cards; an option that two of them need is given once."""
    seen = dict[tuple[str, str], None]()
    for model in models:
        words = card(model, directory)
        seen |= dict.fromkeys(zip(words[::2], words[1::2], strict=True))
    return tuple(word for pair in seen for word in pair)


def disk(tools: Path, path: Path, mark: str) -> Path:
    """A disk without partitions: a FAT file system with the program at the path where every firmware looks for one."""
    path.write_bytes(bytes(4 << 20))
    settings = {**environment(), "MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"}
    run([tools / "mformat", "-i", path, "-T", "8192", "-h", "16", "-s", "32", "::"], env=settings)
    run([tools / "mmd", "-i", path, "::/EFI", "::/EFI/BOOT"], env=settings)
    run([tools / "mcopy", "-i", path, program(path.parent, mark), "::/EFI/BOOT/BOOTX64.EFI"], env=settings)
    return path


# A disk behind each kind of controller for which the ordinary firmware has a driver: {} is the disk, then its order.
_BEHIND: dict[str, tuple[str, ...]] = {
    "virtio": ("-device", "virtio-blk-pci,drive={},bootindex={}"),
    "virtio-scsi": ("-device", "virtio-scsi-pci,id=vscsi", "-device", "scsi-hd,bus=vscsi.0,drive={},bootindex={}"),
    "sata": ("-device", "ide-hd,bus=ide.0,drive={},bootindex={}"),
    "nvme": ("-device", "nvme,serial=1,drive={},bootindex={}"),
    "usb": ("-device", "qemu-xhci,id=usb", "-device", "usb-storage,bus=usb.0,drive={},bootindex={}"),
    "sd": ("-device", "sdhci-pci,id=sd", "-device", "sd-card,bus=sd-bus,drive={}"),
}


DISKS = tuple(f"the disk behind {kind} runs" for kind in _BEHIND)


def disks(tools: Path, directory: Path) -> dict[str, tuple[str, ...]]:
    """For each kind of controller, QEMU's options for a bootable disk, by the mark that its program prints."""
    made = dict[str, tuple[str, ...]]()
    for mark, (kind, words) in zip(DISKS, _BEHIND.items(), strict=True):
        image = disk(tools, directory / f"{kind}.img", mark)
        node = f"driver=raw,node-name=disk-{kind},file.driver=file,file.filename={escaped(image)}"
        made[mark] = ("-blockdev", node, *(word.format(f"disk-{kind}", len(made) + 1) for word in words))
    return made


NETWORK = "the network's program runs"


def serve(directory: Path) -> Path:
    """A directory with the program that a network offers."""
    served = directory / "served"
    served.mkdir()
    program(directory, NETWORK).rename(served / "boot.efi")
    return served


def network(served: Path, capture: Path) -> tuple[str, ...]:
    """A card on a network that offers the boot program by DHCP; ``capture`` gets its frames (pcap)."""
    return (
        *("-netdev", f"user,id=pxe,restrict=on,tftp={escaped(served)},bootfile=boot.efi"),
        *("-device", "virtio-net-pci,netdev=pxe,romfile=,bootindex=90"),
        *("-object", f"filter-dump,id=dump,netdev=pxe,file={escaped(capture)}"),
    )


PCAP_HEADER = 24  # bytes of a capture without frames
