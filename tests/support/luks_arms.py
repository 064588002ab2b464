# SPDX-License-Identifier: Apache-2.0
"""The control arms of the encrypted workflow: its initramfs without single checks, and a host's own disk.

A variant is the genuine initramfs with one more layer: genuine files with a part of their text replaced. Each part must
occur exactly once. If a check is moved or renamed, the tests therefore fail instead of passing.
"""

import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import Layer, make_rootfs, text_entry
from sevsnp.archives.tar import Entry
from sevsnp.images import luks2
from sevsnp.images.filesystem import make_ext4
from sevsnp.images.initramfs import MODULE_LISTS, join_layers
from sevsnp.images.kernel_modules import ModuleTree
from sevsnp.images.lists import read_names
from sevsnp.vm_config.config import VmConfig
from tests.conftest import Built
from tests.support.configs import file, honest
from tests.support.luks_guests import luks_config
from tests.support.luks_mutations import HOST_KEY, MUTATIONS
from tests.support.luks_volume import Volume, synthetic
from tests.support.replacing import replaced_once

MARK = "the host's own root runs"
NULL_CIPHER = "null data cipher, no integrity"


class Check(Enum):
    """A comparison that init makes, as the lines that do it: file, old text, new text."""

    OWNER = (
        ("key_agent.py", "context.verify_mode = ssl.CERT_REQUIRED", "context.verify_mode = ssl.CERT_NONE"),
        ("key_agent.py", "if connection.getpeercert(binary_form=True) == owner and ", "if "),
    )
    HEADER = (("luks_root.py", "if digest.hexdigest() != wanted:", "if False:"),)
    # Without this check REPORT_DATA has the measured header's digest, whatever was read.
    CLAIM = (("luks_root.py", "return digest.digest()", "return bytes.fromhex(wanted)"),)
    # Without this check cryptsetup reads the header a second time, from the disk.
    MEMORY = (("luks_root.py", '            *("--header", HEADER),\n', ""),)
    # A root without integrity has one table less, and dmsetup would fail for the missing one.
    TABLES = (
        ("luks_root.py", 'for each in (name, f"{name}{INTEGRITY}"))', "for each in (name, name))"),
        ("luks_root.py", "if found != tables:", "if False:"),
    )
    GENERATION = (("luks_root.py", "if found < least:", "if False:"),)
    # Without this check the file system is directly on dm-crypt, where errors are only read errors.
    GUARD = (("luks_root.py", "linux.mount(root_guard.guard(NAME), ", 'linux.mount(f"/dev/mapper/{NAME}", '),)
    DATA_GUARD = (("data_disk.py", "linux.mount(root_guard.guard(NAME), ", 'linux.mount(f"/dev/mapper/{NAME}", '),)
    # Not a comparison: the kernel has no null cipher, because no list contains its module.
    CIPHERS = ()


def without(built: Built, directory: Path, *checks: Check, of: VmConfig | None = None) -> VmConfig:
    """The emulated VM config of a guest whose init lacks ``checks``, with the launch digest of that guest.

    The guest is that of the VM config ``of``, or of the encrypted workflow.
    """
    config = of or luks_config(built)
    texts: dict[str, str] = {}
    for check in checks:
        for name, old, new in check.value:
            text = texts.get(name) or (built.project / "initramfs" / name).read_text()
            texts[name] = replaced_once(text, old, new)
    directory.mkdir(parents=True, exist_ok=True)
    layer, initrd = directory / "layer.cpio", directory / "initramfs"
    entries = [text_entry(f"usr/lib/sevsnp/{name}", text) for name, text in texts.items()]
    if Check.CIPHERS in checks:
        entries += _null_cipher(built)
    with layer.open("wb") as stream:
        write_cpio(with_parents(entries), stream)
    join_layers(layers=[config.launch.initrd.path, layer], output=initrd)
    return honest(config, directory, initrd=file(initrd))


def _null_cipher(built: Built) -> list[Entry]:
    """The module of the null cipher, and the list ``luks`` with that module at its end."""
    kernel, place = built.build / "kernel", "usr/lib/sevsnp/modules"
    tree = ModuleTree(kernel / "lib" / "modules" / (kernel / "version").read_text().strip())
    listed = read_names(built.project / "initramfs" / "modules.yaml", *MODULE_LISTS)["luks"]
    order = "".join(f"/{place}/{module}.ko\n" for module in tree.closure([*listed, "crypto_null"], "luks"))
    entries = [text_entry(f"{place}/{name}.ko", image) for name, image in tree.closure(["crypto_null"], "luks").items()]
    return [*entries, text_entry(f"{place}/luks.list", order)]


def volume_of(header: bytes, key: bytes) -> Volume:
    """The volume with its volume key, which the owner's key gives."""
    metadata = luks2.Luks2.parse(header).metadata
    slot = metadata["keyslots"]["0"]
    start, size = int(slot["area"]["offset"]), slot["key_size"] * slot["af"]["stripes"]
    derived = luks2._derive(slot["kdf"], key, slot["area"]["key_size"])
    material = luks2._decrypt(derived, header[start : start + size])
    return Volume(header, key, luks2._merge(material, slot["key_size"], slot["af"]["stripes"], slot["af"]["hash"]))


def mutated(header: bytes, key: bytes, mutation: str) -> bytes:
    """A volume's header with one of :data:`MUTATIONS`."""
    return MUTATIONS[mutation](volume_of(header, key))


@dataclass(frozen=True)
class HostDisk:
    """A disk of the host: ``key`` opens its ``header``, its data are not encrypted, and its root is the host's."""

    path: Path
    header: bytes
    key: bytes = HOST_KEY


def make_host_disk(built: Built, path: Path) -> HostDisk:
    """A disk with a keyslot for the host's own key."""
    header = MUTATIONS[NULL_CIPHER](synthetic(HOST_KEY, seed=3))
    tar, image = path.with_suffix(".tar"), path.with_suffix(".ext4")
    make_rootfs([Layer("host", [text_entry("sbin/init", hostile_init(), 0o755)])], tar)
    make_ext4(tar, image, tools=built.tools.resolve())
    path.write_bytes(header + image.read_bytes())
    for leftover in (tar, image):
        leftover.unlink()
    return HostDisk(path, header)


def hostile_init() -> bytes:
    """A program that prints :data:`MARK` on the console and reboots: ELF for x86-64, without libraries or memory."""
    mark = f"\n{MARK}\n".encode()
    load, start = 0x400000, 64 + 56
    code = bytes.fromhex(
        "b801000000"  # mov eax, 1 (write)
        "bf01000000"  # mov edi, 1
        "488d35 00000000"  # lea rsi, [rip + …]: after the code
        f"ba {len(mark).to_bytes(4, 'little').hex()}"  # mov edx, its length
        "0f05"  # syscall
        "b8a2000000 0f05"  # sync
        "b8a9000000"  # mov eax, 169 (reboot)
        "bfaddee1fe be69191228 ba67452301"  # its magic numbers, restart
        "0f05"
    )
    lea_end = 17
    code = code[: lea_end - 4] + struct.pack("<i", len(code) - lea_end) + code[lea_end:]
    size = start + len(code) + len(mark)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, load + start, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, load, load, size, size, 0x1000)
    return header + segment + code + mark
