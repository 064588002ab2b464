# SPDX-License-Identifier: Apache-2.0
"""The settings of one run. Sources: ``NAME=value`` on the command line, else environment, config.yaml, or default."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.settings.table import SECRETS, SETTINGS
from sevsnp.settings.values import Value
from sevsnp.system.logins import without_login
from sevsnp.system.nearest import did_you_mean
from sevsnp.system.yaml_loader import strict_loader

CONFIG_FILE = "config.yaml"
COMMAND_LINE, ENVIRONMENT = "the command line", "the environment"
# Sources for one run only; config.yaml is the source for all runs.
PER_RUN = (COMMAND_LINE, ENVIRONMENT)
# Variables of the environment that say where directories are whose settings are empty.
PLACES = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME")
ALL_SETTINGS = "all settings: ./doitw settings"
_OPTION_VALUE = "the value of an option that has a = is written in one word with it, as in --command='A=1 env'"
_BY_NAME = {setting.name: setting for setting in SETTINGS}
_BY_KEY = {setting.key: setting for setting in SETTINGS}


@dataclass(frozen=True)
class Settings:
    """The settings of one run; ``settings["CPUS"]`` is parsed and in range."""

    values: Mapping[str, Value]
    sources: Mapping[str, str]
    # The unparsed text of each setting.
    texts: Mapping[str, str]

    def __getitem__(self, name: str) -> Value:
        if name not in self.sources:
            raise UserError(f"there is no setting {name}", did_you_mean(name, _BY_NAME) or ALL_SETTINGS)
        return self.values[name]

    def text(self, name: str) -> str:
        return str(self[name])

    def number(self, name: str) -> int:
        value = self[name]
        assert isinstance(value, int), name
        return value

    def is_default(self, name: str) -> bool:
        """Whether a setting is unchanged: not given for this run, and with its default in config.yaml."""
        setting = _BY_NAME[name]
        return self.sources[name] not in PER_RUN and self.values[name] == setting.parse(setting.default)

    def path(self, name: str, default: Path) -> Path:
        """The path that a setting names, or ``default`` if the setting is empty; ``~`` is the user's home."""
        text = self.text(name)
        return Path(text).expanduser() if text else default

    def optional_path(self, name: str) -> Path | None:
        """The path that a setting names, as from :meth:`path`; None if the setting is empty."""
        return self.path(name, Path()) if self.text(name) else None

    def acpi(self) -> bool:
        """Whether the guest boots with ACPI. Raises UserError for ACPI=off with several vCPUs, which need ACPI."""
        if self.text("ACPI") == "off" and self.number("CPUS") > 1:
            raise UserError(f"ACPI=off: found CPUS={self.number('CPUS')}, expected 1: more cannot start without ACPI")
        return self.text("ACPI") != "off"

    def config_dir(self) -> Path:
        """The directory of the user's own keys: CONFIG_DIR, else the XDG configuration directory."""
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return self.path("CONFIG_DIR", base / "openend2e-sevsnp")

    def data_dir(self) -> Path:
        """The directory of the volumes that guests have written: DATA_DIR, else the XDG data directory."""
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
        return self.path("DATA_DIR", base / "openend2e-sevsnp")

    def artefact_cache(self) -> Path:
        """The artefact cache: SEVSNP_CACHE, else a directory beside the downloads."""
        return self.path("SEVSNP_CACHE", self.cache_dir() / "artefacts")

    def cache_dir(self) -> Path:
        """The directory of downloads: CACHE_DIR, else the XDG cache directory."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return self.path("CACHE_DIR", base / "openend2e-sevsnp")


def nearest_setting(name: str, known: Iterable[str], form: str) -> str:
    """A hint for a ``name`` that is not ``known``: the nearest known name in ``form``, and the list of all names."""
    meant = did_you_mean(name, known, form)
    return f"{meant} {ALL_SETTINGS}" if meant else ALL_SETTINGS


def _kind(node: object) -> str:
    return type(node).__name__.removesuffix("Node").lower()


def read_config(file: Path) -> dict[str, str]:
    """The settings in a config.yaml, as text by NAME. Raises UserError that names an unknown or repeated key.

    The text is used unchanged: YAML's own types would make a boolean of ``on``, 8 of ``010`` and 5400 of ``1:30:00``,
    and a dict would silently drop a repeated key.
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
            raise UserError(f"{file}: unknown setting {key.value!r}", nearest_setting(str(key.value), _BY_KEY, "{}:"))
        if setting.name in texts:
            raise UserError(f"{file}: {setting.key} is set twice, expected once")
        if not isinstance(value, yaml.ScalarNode):
            raise UserError(f"{file}: {setting.key}: found a {_kind(value)}, expected {setting.expected}")
        texts[setting.name] = "" if value.tag == "tag:yaml.org,2002:null" else value.value
    return texts


def resolve(command_line: Mapping[str, str], environment: Mapping[str, str], file: Path) -> Settings:
    """Take every setting from its strongest source. Raises UserError that names an unknown setting or a bad value."""
    for name in command_line:
        if name in SECRETS:
            raise UserError(
                f"{name}=… on the command line: every process on this machine can read it there",
                "give another key, in the environment or in a file, because this one is no longer secret: "
                f"{name}_FILE=FILE",
            )
        if name not in _BY_NAME:
            word = f"{name}={without_login(command_line[name])}"
            hint = nearest_setting(name, _BY_NAME, "{}=")
            # doit takes every word with = for a setting, also one that follows an option.
            if hint == ALL_SETTINGS and (re.search(r"\s", word) or not name.isidentifier()):
                hint = _OPTION_VALUE
            raise UserError(f"unknown setting {word}", hint)
    configured = read_config(file)
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    texts: dict[str, str] = {}
    for setting in SETTINGS:
        for source, given in (
            (COMMAND_LINE, command_line),
            (ENVIRONMENT, environment),
            (str(file), configured),
            ("the default", {setting.name: setting.default}),
        ):
            if setting.name in given:
                text = texts[setting.name] = given[setting.name]
                try:
                    values[setting.name] = setting.parse(text)
                except ValueError:
                    raise UserError(
                        f"{setting.name}={without_login(text)} (from {source}): expected {setting.expected}",
                        did_you_mean(text, setting.allowed, f"{setting.name}={{}}"),
                    ) from None
                sources[setting.name] = source
                break
    return Settings(values, sources, texts)


def command_line_words(argv: list[str]) -> dict[str, str]:
    """The ``NAME=value`` words of a doit command line.

    This is doit's own rule (``DoitMain.process_args``), so that both always take the same words: any word with ``=``
    that does not begin with ``-``, even one that was meant as an option's value. Of two words, the last one wins.
    """
    words = [word for word in argv if "=" in word and not word.startswith("-")]
    return dict(word.split("=", 1) for word in words)
