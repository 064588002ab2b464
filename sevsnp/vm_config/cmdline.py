# SPDX-License-Identifier: Apache-2.0
"""The kernel command line: one function makes this file, and launch, measurement and verification all read it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.system.regular import open_regular

# x86's COMMAND_LINE_SIZE is 2048 with the trailing NUL, and the firmware adds this prefix if there is an initrd. A
# longer line would be measured as a whole, but the kernel would cut it off.
FIRMWARE_PREFIX = "initrd=initrd "
MAX_LENGTH = 2047 - len(FIRMWARE_PREFIX)

_CONSOLE = (("console=ttyS0", "the boot log goes to the serial console, which nothing in the guest reads"),)

_HARDENING = (
    ("loglevel=4", "the console shows what went wrong, and an emulated serial port is slow"),
    ("panic=-1", "a panic ends the guest at once (QEMU runs with -no-reboot)"),
    ("oops=panic", "no half-dead kernel goes on"),
    ("random.trust_bootloader=off", "a seed from the host is no entropy"),
    ("random.trust_cpu=on", "RDRAND is inside the trust boundary"),
    (
        "lockdown=confidentiality",
        "no program reads the kernel's memory (/dev/mem, kcore, BPF, perf), and only signed modules are loaded",
    ),
    ("ia32_emulation=off", "an interrupt 0x80 that the host injects is no system call"),
    ("no-kvmapf", "page faults are the guest's own: no word in shared memory makes the kernel wait instead"),
    ("xen_nopv", "no shared pages, event channels and drivers of Xen if the host's CPUID says that it is Xen"),
    ("efi=noruntime", "the firmware's code runs no more, and systemd reads no options from its variables"),
    ("nohibernate", "no memory image is ever written to a host disk"),
    ("noresume", "no memory image is ever read from a host disk"),
    ("sysctl.kernel.sysrq=0", "a break on the serial line must do nothing"),
    ("i8042.nokbd", "the keyboard is the host's: no key of it does anything"),
    ("i8042.noaux", "… nor a mouse"),
    ("pcie_ports=compat", "no slot takes a card while the guest runs: the kernel would give it a driver at once"),
    ("acpiphp.disable=1", "… nor through ACPI, where there is any"),
    ("systemd.import_credentials=no", "SMBIOS and fw_cfg are the host's: no credentials from there"),
    ("systemd.gpt_auto=0", "no file system is mounted because a host's partition table says so"),
    ("systemd.swap=0", "no swap area is used because a host's disk offers one"),
    ("fstab=no", "no disk is mounted because a label or UUID on it says so"),
    ("systemd.firstboot=no", "nothing asks questions on the console"),
    ("systemd.getty_auto=no", "no login prompt on a console that the host reads"),
    ("fsck.mode=skip", "the root is verified block by block; nothing repairs it"),
)

_NO_ACPI = ("acpi=off", "ACPI tables are the host's, unmeasured, and their AML code would run in the kernel")

# These words would undo the measured boot or give the console control of the guest, so they are always refused.
_DENIED = re.compile(
    r"(init|rdinit|break|single|emergency|rescue|kgdboc|earlyprintk|resume|ds|mem_encrypt|cloud-config-url)(=|$)"
    r"|lockdown(=(?!confidentiality$)|$)"
    r"|rd\.|systemd\.(debug|unit|set_credential|mask|wants|run|setenv)|module_blacklist=|initcall_blacklist="
    r"|mitigations=off|nokaslr|cc:|acpi_|--$"
)


@dataclass(frozen=True)
class Word:
    """A word of the command line, and the reason for it."""

    text: str
    reason: str


def hardening_words(*, acpi: bool) -> list[Word]:
    """The words with which every measured guest boots; they switch ACPI off unless ``acpi``."""
    pairs = [*_CONSOLE, *_HARDENING, *([] if acpi else [_NO_ACPI])]
    return [Word(*pair) for pair in pairs]


def _normal(name: str) -> str:
    """A name in the form that its readers compare: the kernel and systemd treat - and _ as equal, sysctl / and ."""
    return name.replace("-", "_").replace("/", ".") if name.startswith("sysctl") else name.replace("-", "_")


def build_cmdline(words: Iterable[str]) -> str:
    """Join words into a command line: printable ASCII without quotes, at most 2,033 bytes, no name twice.

    Raises :class:`UserError` naming the word. The result has no newline and no trailing space.
    """
    seen: set[str] = set()
    checked = []
    for word in words:
        if not re.fullmatch(r"[!#-&(-\[\]-~]+", word):
            raise UserError(f"command line: {word!r}: expected printable ASCII without blanks, quotes and backslashes")
        name = _normal(word.partition("=")[0])
        if _DENIED.match(word) or _DENIED.match(_normal(word)):
            raise UserError(f"command line: {word}: refused: it would undo the measured boot")
        if name in seen:
            raise UserError(f"command line: {name}: given twice")
        seen.add(name)
        checked.append(word)
    line = " ".join(checked)
    if len(line) > MAX_LENGTH:
        raise UserError(f"command line: found {len(line)} bytes, expected at most {MAX_LENGTH}")
    return line


def verity_words(
    *,
    table: str,
    rootfs: str,
    writable: str,
    tmpfs: dict[str, int],
    acpi: bool,
    emulated: bool,
    dns: str = "",
    data: str = "",
    owner: str = "",
) -> list[Word]:
    """The whole command line of the integrity workflow, word by word; ``tmpfs`` in bytes for etc, home, var and tmp.

    ``dns`` are the addresses of DNS servers, with commas; empty: the root file system says which. ``data`` is
    SIZE:SHA-256 of the data disk's header, the SHA-256 of its device-mapper tables and its mount point, with colons;
    empty: there is no such disk. ``owner`` is for that disk, as for :func:`luks_words`.
    """
    disk = [
        Word(f"sevsnp.data=1:{data}", "this data disk and no other, and where it is mounted"),
        Word(f"sevsnp.owner={owner}", "only this owner may send the disk's key"),
    ]
    sizes = ",".join(f"{name}:{tmpfs[name]}" for name in ("etc", "home", "var", "tmp"))
    words = [
        *hardening_words(acpi=acpi),
        Word("sevsnp.mode=verity", "the one boot mode"),
        Word(f"sevsnp.verity={table}", "the whole verity table: nothing is read from the disk before it is verified"),
        Word(f"sevsnp.rootfs={rootfs}", "the file system of the verified root"),
        Word(f"sevsnp.writable={writable}", "how /etc, /home and /var become writable"),
        Word(f"sevsnp.tmpfs={sizes}", "their sizes in bytes"),
        *(disk if data else []),
    ]
    return [*words, *_servers(dns), *_emulation(emulated)]


def luks_words(
    *, header: str, tables: str, owner: str, acpi: bool, emulated: bool, reports: str = "closed", dns: str = ""
) -> list[Word]:
    """The whole command line of the encrypted workflow, word by word.

    ``header`` is SIZE:SHA-256 of the volume's header, ``tables`` the SHA-256 of its active device-mapper tables,
    ``owner`` the owner's certificate (DER) in base64. ``reports`` is closed or open, ``dns`` as for
    :func:`verity_words`.
    """
    opened = Word("sevsnp.reports=open", "the guest's own services may ask for reports: LUKS_REPORTS=open")
    return [
        *hardening_words(acpi=acpi),
        Word("sevsnp.mode=luks", "the one boot mode"),
        Word(f"sevsnp.luks=1:{header}:{tables}", "this volume and no other: no two of them measure alike"),
        Word("sevsnp.rootfs=ext4", "the file system of the encrypted root"),
        Word(f"sevsnp.owner={owner}", "only this owner may send the key, so a host cannot offer a root of its own"),
        *([opened] if reports == "open" else []),
        *_servers(dns),
        *_emulation(emulated),
    ]


def _servers(dns: str) -> list[Word]:
    return [Word(f"sevsnp.dns={dns}", "these DNS servers, and none that the host's DHCP names")] if dns else []


def _emulation(emulated: bool) -> list[Word]:
    return [Word("sevsnp.emulated=1", "evidence comes from the software secure processor")] if emulated else []


def read_bytes(path: Path) -> bytes:
    """The bytes of a command-line file. Raises UserError if it cannot be read, or has more than MAX_LENGTH."""
    try:
        with open_regular(path) as stream:
            data = stream.read(MAX_LENGTH + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read the cmdline: {error.strerror}") from error
    if len(data) > MAX_LENGTH:
        raise UserError(f"{path}: more than {MAX_LENGTH} bytes: the kernel would cut the command line off")
    return data


def read_cmdline(path: Path) -> str:
    """The command line that QEMU gets: the file's bytes, which must be ASCII without a newline."""
    data = read_bytes(path)
    if not data.isascii() or any(byte < 32 or byte == 127 for byte in data):
        raise UserError(f"{path}: found a control or non-ASCII character, expected one line of ASCII and no newline")
    return data.decode()
