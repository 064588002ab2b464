"""Pipeline settings: ``NAME=value`` on the command line, then the environment, then config.yaml, then the default."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError

CONFIG_FILE = "config.yaml"

Value = str | int
Parser = Callable[[str], Value]


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
        value = int(text, 0)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """``512M`` or ``2G`` in bytes; binary units, no fractions."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(text)
    return int(match[1]) * _UNITS[match[2].upper()]


def _size(low: int, high: int) -> Parser:
    def parse(text: str) -> int:
        value = parse_size(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


_TMPFS = _size(1 << 20, 1 << 40)
_PORT = _integer(1, 65535)

SETTINGS: tuple[Setting, ...] = (
    Setting("IMAGE", _text, "", "a path: a root filesystem tar for setup_*, a disk image for run_guest"),
    Setting("PLATFORM", _choice("auto", "snp", "emulated"), "auto", "auto, snp or emulated"),
    Setting("PRODUCT", _choice("Milan", "Genoa", "Turin"), "Genoa", "Milan, Genoa or Turin"),
    Setting("CPUS", _integer(1, 255), "1", "a number of vCPUs from 1 to 255"),
    Setting("CPU_MODEL", _word, "EPYC-v4", "a QEMU CPU model, as EPYC-v4 or EPYC-Genoa"),
    Setting("POLICY", _integer(0, (1 << 64) - 1), "0x30000", "a 64-bit SNP guest policy, as 0x30000"),
    Setting("GUEST_FEATURES", _integer(0, (1 << 64) - 1), "0x1", "SEV_FEATURES of the VMSA, as 0x1"),
    Setting("ACPI", _choice("auto", "on", "off"), "auto", "auto, on or off"),
    Setting("WRITABLE", _choice("overlay", "copy"), "overlay", "overlay or copy"),
    Setting("TMPFS_ETC", _TMPFS, "1G", "a size, as 512M or 1G"),
    Setting("TMPFS_HOME", _TMPFS, "8G", "a size, as 512M or 1G"),
    Setting("TMPFS_VAR", _TMPFS, "2G", "a size, as 512M or 1G"),
    Setting("TMPFS_TMP", _TMPFS, "1G", "a size, as 512M or 1G"),
    Setting("VERITY_FILESYSTEM", _choice("ext4", "erofs"), "ext4", "ext4 or erofs"),
    Setting("MEMORY", _size(256 << 20, 1 << 42), "2G", "guest memory from 256M, as 1536M or 4G"),
    Setting("SSH_PORT", _PORT, "2222", "a TCP port"),
    Setting("ATTEST_PORT", _PORT, "8088", "a TCP port"),
    Setting("HOST", _text, "127.0.0.1", "the address at which the guest's forwarded ports answer"),
    Setting("PORT", _integer(0, 65535), "0", "the attestation port at HOST (0: ATTEST_PORT)"),
    Setting("VERITY_IMAGE", _text, "", "a path"),
    Setting("VERITY_HASH_TREE", _text, "", "a path"),
    Setting("VM_CONFIG", _text, "", "a path to a VM config"),
    Setting("KERNEL_DEB", _text, "", "a path to a linux-image package"),
    Setting("MIRROR", _text, "", "the URI of a Debian mirror"),
    Setting("SNAPSHOT_MIRROR", _text, "", "the URI of a Debian snapshot mirror, ending before the pool"),
    Setting("CONFIG_DIR", _text, "", "a directory for the user's keys"),
    Setting("CACHE_DIR", _text, "", "a directory for downloaded packages"),
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

    def config_dir(self) -> Path:
        """Where the user's own keys live: CONFIG_DIR, else the XDG configuration directory."""
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return self.path("CONFIG_DIR", base / "openend2e-sevsnp")

    def cache_dir(self) -> Path:
        """Where downloads are kept: CACHE_DIR, else the XDG cache directory."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return self.path("CACHE_DIR", base / "openend2e-sevsnp")


def _as_text(value: Any, key: str, file: Path) -> str:
    # YAML 1.1 reads an unquoted on/off as a boolean; users write `acpi: on` and mean the word.
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return ""
    if isinstance(value, str | int):
        return str(value)
    raise UserError(f"{file}: {key}: found a {type(value).__name__}, expected {_BY_KEY[key].expected}")


def read_config(file: Path) -> dict[str, str]:
    """The settings in a config.yaml, as text by NAME; unknown keys are refused by name."""
    import yaml

    if not file.exists():
        return {}
    try:
        document = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not YAML: {str(error).splitlines()[0]}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(f"{file}: found a {type(document).__name__}, expected `name: value` lines")
    for key in document:
        if key not in _BY_KEY:
            raise UserError(f"{file}: unknown setting {key!r}", f"known: {', '.join(_BY_KEY)}")
    return {_BY_KEY[key].name: _as_text(value, key, file) for key, value in document.items()}


def resolve(command_line: Mapping[str, str], environment: Mapping[str, str], file: Path) -> Settings:
    """Every setting from its strongest source. Unknown names and bad values are refused by name."""
    for name in command_line:
        if name not in _BY_NAME:
            raise UserError(f"unknown setting {name}={command_line[name]}", f"known: {', '.join(_BY_NAME)}")
    configured = read_config(file)
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        for source, texts in (
            ("the command line", command_line),
            ("the environment", environment),
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
    """The ``NAME=value`` words of a doit command line (any word with ``=`` that is not an option)."""
    words = [word for word in argv if "=" in word and not word.startswith("-")]
    return dict(word.split("=", 1) for word in words)
