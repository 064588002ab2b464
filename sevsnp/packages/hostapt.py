# SPDX-License-Identifier: Apache-2.0
"""Reads the settings of the host's own apt, its sources and its proxies, without changing anything."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sevsnp.system.command import run

DIRECT = "DIRECT"


@dataclass(frozen=True)
class Source:
    """One archive in the host's sources: its URI, suite, components and key file (empty if none is named)."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


def configuration() -> dict[str, str]:
    """The host's apt settings (``apt-config dump``) by name; lists keep only their last entry."""
    text = run(["apt-config", "dump"], hint="install apt: its configuration says where packages come from").decode(
        errors="replace"
    )
    return {match[1]: match[2] for match in re.finditer(r'^(\S+) "(.*)";$', text, re.MULTILINE)}


def _directory() -> tuple[Path, Path]:
    # apt-config joins Dir, Dir::Etc and the rest as apt itself does.
    out = run(["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]).decode()
    words = dict(word.split("=", 1) for word in shlex.split(out))
    return Path(words.get("LIST", "/etc/apt/sources.list")), Path(words.get("PARTS", "/etc/apt/sources.list.d"))


def parse_one_line(text: str) -> Iterator[Source]:
    """The ``deb [options] URI SUITE COMPONENT…`` lines of a sources.list; other lines are skipped."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if match:
            options = dict(word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
            yield Source(match[2], match[3], tuple(match[4].split()), options.get("signed-by", ""))


def parse_deb822(text: str) -> Iterator[Source]:
    """The archives of a deb822 ``*.sources`` file, one for each URI and suite; disabled ones are left out."""
    # Comment lines may be inside a stanza, so they are removed before the stanzas are split.
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        values: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1] in " \t":
                values[key] = f"{values.get(key, '')} {line.strip()}"
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                values[key] = value.strip()
        if "deb" not in values.get("types", "").split() or values.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in values.get("uris", "").split():
            for suite in values.get("suites", "").split():
                yield Source(uri, suite, tuple(values.get("components", "").split()), values.get("signed-by", ""))


def _first_mirror(uri: str) -> str:
    """The first URI of a ``mirror+file:`` list (Debian's cloud images have one); any other URI unchanged."""
    if not uri.startswith("mirror+file:"):
        return uri
    try:
        lines = Path(unquote(urlsplit(uri).path)).read_text().splitlines()
    except OSError:
        return uri
    return next((line.split()[0] for line in lines if line.strip() and not line.startswith("#")), uri)


def _source_files() -> list[Path]:
    single, parts = _directory()
    files = [single, *(sorted(parts.iterdir()) if parts.is_dir() else [])]
    return [file for file in files if file.suffix in (".list", ".sources") and file.is_file()]


def read_sources() -> tuple[Source, ...]:
    """Every binary archive in the host's sources.list and sources.list.d, in apt's order."""
    found: list[Source] = []
    for file in _source_files():
        text = file.read_text(errors="replace")
        if file.suffix == ".list":
            found += parse_one_line(text)
        elif file.suffix == ".sources":
            found += parse_deb822(text)
    return tuple(replace(source, uri=_first_mirror(source.uri)) for source in found)


def _of_debian(source: Source) -> bool:
    # A suite called bookworm or stable proves nothing: other vendors use the names too. The key or the path proves it.
    if "debian-archive" in source.signed_by:
        return True
    segments = urlsplit(source.uri).path.split("/")
    return not source.signed_by and ("debian" in segments or "debian-security" in segments)


def find_debian(sources: tuple[Source, ...]) -> tuple[str, str]:
    """The URIs of Debian's main archive and of its security archive among ``sources``; empty if there is none."""
    main = security = ""
    for source in sources:
        if "main" not in source.components or not _of_debian(source):
            continue
        if re.search(r"(-security|/updates)/?$", source.suite):
            security = security or source.uri
        elif "backports" not in source.suite:
            main = main or source.uri
    return main, security


def find_snapshots(settings: dict[str, str]) -> tuple[str, str]:
    """The snapshots of Debian's main and security archives that this machine's apt knows of; empty if there is none.

    They contain ``@SNAPSHOTID@`` in place of a time, as in the settings of apt 3.0 and later. Debian's container images
    are made from a snapshot, and name it in a comment before each source.
    """
    lowered = {name.lower(): value for name, value in settings.items()}
    # The order is apt's own.
    kinds = ("override::label", "override::origin", "label", "origin")

    def configured(label: str) -> str:
        names = {"label": label, "origin": "debian"}
        found = (lowered.get(f"acquire::snapshots::uri::{kind}::{names[kind.rpartition('::')[2]]}") for kind in kinds)
        return next((uri for uri in found if uri and "://" in uri and "@SNAPSHOTID@" in uri), "")

    if main := configured("debian"):
        security = configured("debian-security")
        return main, security if security != main else ""
    comments = [
        f"{match[1]}@SNAPSHOTID@"
        for file in _source_files()
        for match in re.finditer(
            r"^#\s*(https?://\S+/)[0-9]{8}T[0-9]{6}Z/?\s*$", file.read_text(errors="replace"), re.MULTILINE
        )
    ]
    found = {name: [uri for uri in comments if f"/{name}/" in uri] for name in ("debian", "debian-security")}
    return tuple(next(iter(uris), "") for uris in found.values())  # type: ignore[return-value]


def find_proxy(settings: dict[str, str], uri: str) -> str:
    """The proxy that apt itself would take for ``uri``: an address, ``DIRECT``, or empty if none is configured.

    The order is that of apt.conf(5): the proxy for this host, then the general one; https falls back to http's.
    """
    parts = urlsplit(uri)
    # apt's method names are lower case, but it matches settings without regard to case.
    lowered = {name.lower(): value for name, value in settings.items()}
    for scheme in ("https", "http") if parts.scheme == "https" else ("http",):
        for name in (f"acquire::{scheme}::proxy::{parts.hostname}", f"acquire::{scheme}::proxy"):
            if value := lowered.get(name):
                return DIRECT if value.lower() in ("direct", "false") else value
    return ""
