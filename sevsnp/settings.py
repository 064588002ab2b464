"""Pipeline settings: ``NAME=value`` on the command line, then the environment, then config.yaml, then the default."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.yaml_loader import strict_loader

CONFIG_FILE = "config.yaml"
COMMAND_LINE, ENVIRONMENT = "the command line", "the environment"
# What is said for one run, as against what config.yaml says for all.
PER_RUN = (COMMAND_LINE, ENVIRONMENT)

Value = str | int
Parser = Callable[[str], Value]

# Never taken as a word of the command line, and shown nowhere.
SECRETS = ("LUKS_KEY",)


@dataclass(frozen=True)
class Setting:
    """One setting: its name on the command line, how its text is read, and its default as text."""

    name: str
    parse: Parser
    default: str
    expected: str

    @property
    def key(self) -> str:
        """Its name in config.yaml."""
        return self.name.lower()


def _text(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise ValueError
    return text


def _choice(*allowed: str) -> Parser:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError
        return text

    return parse


def _integer(low: int, high: int) -> Parser:
    def parse(text: str) -> int:
        # int() alone would also take 1_000, blanks and other scripts' digits.
        if not re.fullmatch(r"[0-9]+|0x[0-9A-Fa-f]+", text):
            raise ValueError
        value = int(text, 16 if text.startswith("0x") else 10)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """``512M``, ``2G``, ``2GiB`` or plain bytes, in bytes; binary units, no fractions. Raises ValueError."""
    # ASCII, or the Kelvin sign would count as a K.
    match = re.fullmatch(r"([0-9]+)(?:([KMG])(?:i?B)?|B)?", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise ValueError(text)
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def _size(low: int, high: int) -> Parser:
    def parse(text: str) -> int:
        value = parse_size(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _policy(text: str) -> int:
    # Reserved bits as AMD 56860 table 10 has them; a policy with debugging or migration is never accepted, so none is
    # ever made.
    value = _integer(0, (1 << 64) - 1)(text)
    assert isinstance(value, int)
    if not value >> 17 & 1 or value >> 26 or value >> 18 & 0b11:
        raise ValueError
    return value


def _hex(digits: int) -> Parser:
    def parse(text: str) -> str:
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
            raise ValueError
        return text

    return parse


# The order in which AMD's documents name the parts of a TCB version; fmc exists on Turin only.
TCB_PARTS = ("fmc", "bootloader", "tee", "snp", "microcode")


def parse_tcb(text: str) -> dict[str, int]:
    """``bootloader:3,tee:0,snp:8,microcode:115`` as numbers from 0 to 255 by part; what is not named is 0."""
    values: dict[str, int] = {}
    for item in text.split(","):
        name, _, number = item.partition(":")
        known = name in TCB_PARTS and name not in values
        if not known or not re.fullmatch("[0-9]{1,3}", number) or int(number) > 255:
            raise ValueError(text)
        values[name] = int(number)
    return dict.fromkeys(TCB_PARTS, 0) | values


def _minimum_tcb(text: str) -> str:
    # A floor of zeros would refuse nothing without saying so; the word for that is any.
    if text not in ("", "any") and not any(parse_tcb(text).values()):
        raise ValueError
    return text


def _cache(text: str) -> str:
    # What a reference must look like is for who opens it to say: what is said here would show a password in it.
    if text and text != "off" and "://" not in text:
        raise ValueError
    return text


_TMPFS = _size(1 << 20, 1 << 40)
_PORT = _integer(1, 65535)
LEAST_MEMORY = 256 << 20

SETTINGS: tuple[Setting, ...] = (
    Setting("IMAGE", _text, "", "a path: a root filesystem tar (for setup_*) or a disk image"),
    Setting("ROOT_DEVICE", _text, "", "a device on the disk image, as /dev/vda2 or /dev/GROUP/VOLUME"),
    Setting("PLATFORM", _choice("auto", "snp", "emulated"), "auto", "auto, snp or emulated"),
    Setting("PRODUCT", _choice("Milan", "Genoa", "Turin"), "Genoa", "Milan, Genoa or Turin"),
    Setting("CPUS", _integer(1, 255), "1", "a number of vCPUs from 1 to 255"),
    Setting("CPU_MODEL", _word, "EPYC-v4", "a QEMU CPU model, as EPYC-v4 or EPYC-Genoa"),
    Setting("POLICY", _policy, "0x30000", "an SNP guest policy without debugging and migration, as 0x30000"),
    Setting("GUEST_FEATURES", _integer(0, (1 << 64) - 1), "0x1", "SEV_FEATURES of the VMSA, as 0x1"),
    Setting("MIN_TCB", _minimum_tcb, "", "parts of a TCB version, as bootloader:3,snp:8,microcode:115, or any"),
    Setting("PLATFORM_INFO_REQUIRED", _integer(0, (1 << 64) - 1), "0x0", "a mask over PLATFORM_INFO, as 0x20"),
    Setting("PLATFORM_INFO_FORBIDDEN", _integer(0, (1 << 64) - 1), "0x0", "a mask over PLATFORM_INFO, as 0x1"),
    Setting("FAMILY_ID", _hex(32), "0" * 32, "32 lower-case hex digits"),
    Setting("IMAGE_ID", _hex(32), "0" * 32, "32 lower-case hex digits"),
    Setting("GUEST_SVN", _integer(0, (1 << 32) - 1), "0", "a security version number from 0 to 4294967295"),
    Setting("ID_KEY", _text, "", "a path to a P-384 private key in PEM"),
    Setting("AUTHOR_KEY", _text, "", "a path to a P-384 private key in PEM"),
    Setting("FIRMWARE", _text, "", "a path to an OVMF built from OvmfPkg/AmdSev"),
    Setting("FIRMWARE_REASON", _text, "", "a sentence"),
    Setting("ACPI", _choice("auto", "on", "off"), "auto", "auto, on or off"),
    Setting("WRITABLE", _choice("overlay", "copy"), "overlay", "overlay or copy"),
    Setting("TMPFS_ETC", _TMPFS, "1G", "a size, as 512M or 1G"),
    Setting("TMPFS_HOME", _TMPFS, "8G", "a size, as 512M or 1G"),
    Setting("TMPFS_VAR", _TMPFS, "2G", "a size, as 512M or 1G"),
    Setting("TMPFS_TMP", _TMPFS, "1G", "a size, as 512M or 1G"),
    Setting("VERITY_FILESYSTEM", _choice("ext4", "erofs"), "ext4", "ext4 or erofs"),
    Setting("LUKS_FREE", _size(16 << 20, 1 << 42), "512M", "a size from 16M, as 512M or 20G"),
    Setting("LUKS_REPORTS", _choice("closed", "open"), "closed", "closed or open"),
    Setting("LUKS_KEY_FILE", _text, "", "a path to a key file, or - to be asked"),
    Setting("MEMORY", _size(LEAST_MEMORY, 1 << 42), "2G", "guest memory from 256M to 4096G, as 1536M"),
    Setting("SSH_PORT", _PORT, "2222", "a TCP port from 1 to 65535"),
    Setting("ATTEST_PORT", _PORT, "8088", "a TCP port from 1 to 65535"),
    Setting("GUEST_NETWORK", _choice("open", "restricted"), "open", "open or restricted"),
    Setting("HOST", _text, "127.0.0.1", "the address at which the guest's forwarded ports answer"),
    Setting("PORT", _integer(0, 65535), "0", "the attestation port at HOST, to 65535 (0: ATTEST_PORT)"),
    Setting("VERITY_IMAGE", _text, "", "a path"),
    Setting("VERITY_HASH_TREE", _text, "", "a path"),
    Setting("VM_CONFIG", _text, "", "a path to a VM config"),
    Setting("EMULATED_ROOT", _text, "", "a path to the ark.pem of a software secure processor"),
    Setting("MANIFEST", _text, "", "a path to a release manifest"),
    Setting("MANIFEST_KEY", _text, "", "a path to a private key in PEM"),
    Setting("MANIFEST_PUBLIC_KEY", _text, "", "a path to a public key in PEM"),
    Setting("KERNEL_DEB", _text, "", "a path to a linux-image package"),
    Setting("MIRROR", _text, "", "the URI of a Debian mirror"),
    Setting("SNAPSHOT_MIRROR", _text, "", "the URI of a Debian snapshot mirror, ending before the pool"),
    Setting("CONFIG_DIR", _text, "", "a directory for the user's keys"),
    Setting("CACHE_DIR", _text, "", "a directory for downloaded packages"),
    Setting("SEVSNP_CACHE", _text, "", "a directory for the artefact cache"),
    Setting("CACHE", _cache, "", "oci://host/repository, off, or nothing"),
    Setting("CACHE_MODE", _choice("pull", "push"), "pull", "pull or push"),
    Setting("CACHE_KEY", _text, "", "a path to a private key in PEM"),
    Setting("CACHE_PUBLIC_KEY", _text, "", "a path to a public key in PEM"),
    Setting("CACHE_SIZE", _size(1 << 20, 1 << 50), "20G", "a size, as 20G"),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}
_BY_KEY = {setting.key: setting for setting in SETTINGS}


@dataclass(frozen=True)
class Settings:
    """The settings of one run; ``settings["CPUS"]`` is parsed and in range."""

    values: Mapping[str, Value]
    sources: Mapping[str, str]

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def text(self, name: str) -> str:
        return str(self.values[name])

    def number(self, name: str) -> int:
        value = self.values[name]
        assert isinstance(value, int), name
        return value

    def path(self, name: str, default: Path) -> Path:
        """The path a setting names, or ``default`` where it is empty; ``~`` is the user's home."""
        text = self.text(name)
        return Path(text).expanduser() if text else default

    def acpi(self) -> bool:
        """Whether the guest boots with ACPI. More than one vCPU cannot be started without: UserError for ACPI=off."""
        if self.text("ACPI") == "off" and self.number("CPUS") > 1:
            raise UserError(f"ACPI=off: found CPUS={self.number('CPUS')}, expected 1: more cannot start without ACPI")
        return self.text("ACPI") == "on" or self.number("CPUS") > 1

    def config_dir(self) -> Path:
        """Where the user's own keys live: CONFIG_DIR, else the XDG configuration directory."""
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return self.path("CONFIG_DIR", base / "openend2e-sevsnp")

    def artefact_cache(self) -> Path:
        """Where artefacts are kept: SEVSNP_CACHE, else a directory beside the downloads."""
        return self.path("SEVSNP_CACHE", self.cache_dir() / "artefacts")

    def cache_dir(self) -> Path:
        """Where downloads are kept: CACHE_DIR, else the XDG cache directory."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return self.path("CACHE_DIR", base / "openend2e-sevsnp")


def _kind(node: object) -> str:
    return type(node).__name__.removesuffix("Node").lower()


def read_config(file: Path) -> dict[str, str]:
    """The settings in a config.yaml, as text by NAME; unknown and doubled keys are refused by name.

    The text is taken as it stands in the file: YAML's own types would make a boolean of ``on``, 8 of ``010`` and
    5400 of ``1:30:00``, and a dict would silently drop a key that is there twice.
    """
    import yaml

    try:
        document = yaml.compose(file.read_text(encoding="utf-8"), strict_loader())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{file}: {line}not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML: {str(error).splitlines()[0]}") from error
    if document is None:
        return {}
    if not isinstance(document, yaml.MappingNode):
        raise UserError(f"{file}: found a {_kind(document)}, expected `name: value` lines")
    texts: dict[str, str] = {}
    for key, value in document.value:
        setting = _BY_KEY.get(key.value) if isinstance(key, yaml.ScalarNode) else None
        if setting is None:
            raise UserError(f"{file}: unknown setting {key.value!r}", f"known: {', '.join(_BY_KEY)}")
        if setting.name in texts:
            raise UserError(f"{file}: {setting.key} is set twice, expected once")
        if not isinstance(value, yaml.ScalarNode):
            raise UserError(f"{file}: {setting.key}: found a {_kind(value)}, expected {setting.expected}")
        texts[setting.name] = "" if value.tag == "tag:yaml.org,2002:null" else value.value
    return texts


def resolve(command_line: Mapping[str, str], environment: Mapping[str, str], file: Path) -> Settings:
    """Every setting from its strongest source. Unknown names and bad values are refused by name."""
    for name in command_line:
        if name in SECRETS:
            raise UserError(
                f"{name}=… on the command line: every process on this machine can read it there",
                f"that key is no secret any more; give another one in the environment, or in a file: {name}_FILE=FILE",
            )
        if name not in _BY_NAME:
            raise UserError(f"unknown setting {name}={command_line[name]}", f"known: {', '.join(_BY_NAME)}")
    configured = read_config(file)
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        for source, texts in (
            (COMMAND_LINE, command_line),
            (ENVIRONMENT, environment),
            (str(file), configured),
            ("the default", {setting.name: setting.default}),
        ):
            if setting.name in texts:
                try:
                    values[setting.name] = setting.parse(texts[setting.name])
                except ValueError:
                    raise UserError(
                        f"{setting.name}={texts[setting.name]} (from {source}): expected {setting.expected}"
                    ) from None
                sources[setting.name] = source
                break
    return Settings(values, sources)


def command_line_words(argv: list[str]) -> dict[str, str]:
    """The ``NAME=value`` words of a doit command line.

    doit's own rule (``DoitMain.process_args``), so that both always take the same words: any word with ``=`` that does
    not begin with ``-``, even where it was meant as an option's value; the last of two wins.
    """
    words = [word for word in argv if "=" in word and not word.startswith("-")]
    return dict(word.split("=", 1) for word in words)
