# SPDX-License-Identifier: Apache-2.0
"""Switches off what takes orders from the host in a foreign root, in every init system; it is found by what it does.

Units, generators and udev rules are masked. SysV and OpenRC services leave their runlevels. Scripts that a directory
runs lose their right to be executed, and lines of tables become comments.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from sevsnp.archives.tar import Kind
from sevsnp.archives.tree import Tree
from sevsnp.images.host_channels import Channels, Marks
from sevsnp.images.network_managers import UNIT_FOLDERS, UNITS

# Where units are. A mask in the second folder overrules all others but the first.
_SYSTEM = ("etc/systemd/system.control", *UNIT_FOLDERS, "etc/systemd/system.attached")
_USER = (
    "root/.config/systemd/user",
    "etc/systemd/user",
    "usr/local/lib/systemd/user",
    "usr/lib/systemd/user",
    "lib/systemd/user",
)
_RULES = ("etc/udev/rules.d", "usr/local/lib/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")
_GENERATORS = tuple(
    (f"etc/systemd/{kind}", f"usr/local/lib/systemd/{kind}", f"usr/lib/systemd/{kind}", f"lib/systemd/{kind}")
    for kind in (
        "system-generators",
        "user-generators",
        "system-environment-generators",
        "user-environment-generators",
    )
)
_SERVICES = ("etc/init.d", "etc/rc.d/init.d")
_SCRIPTS = re.compile(
    r"etc/rc\.local|etc/rc\.d/rc\.local|etc/local\.d/[^/]+|etc/cron\.(hourly|daily|weekly|monthly)/[^/]+"
    r"|etc/periodic/[^/]+/[^/]+|etc/network/if-[a-z-]+\.d/[^/]+|(etc|(usr/)?lib)/NetworkManager/dispatcher\.d/.+"
    r"|(etc|(usr/)?lib)/networkd-dispatcher/[^/]+/[^/]+|etc/update-motd\.d/[^/]+"
)
# A shell reads these, whatever their mode.
_SOURCED = re.compile(r"etc/(dhcp/)?dhclient-(enter|exit)-hooks(\.d/[^/]+)?|etc/profile\.d/[^/]+|(usr/)?lib/dhcpcd/.+")
_TABLES = re.compile(r"etc/(inittab|crontab|anacrontab|cron\.d/[^/]+|crontabs/[^/]+)|var/spool/cron/.+")
_STARTS = re.compile(r"\b(RUN(\{program\})?|PROGRAM|IMPORT\{program\}|ENV\{SYSTEMD_(USER_)?WANTS\})\s*\+?:?==?")
_PORTS = re.compile(r"virtio-ports|\bvport")
_PORTS_REASON = "it uses a virtio-serial port of the host's"
# Lines of a unit that start nothing.
_SILENT_LINE = re.compile(
    r"^\s*([#;].*|\[.*\]\s*|(Condition|Assert|Restrict)\w+\s*=.*|(Description|Documentation|DeviceAllow)\s*=.*)$", re.M
)
_RUNS = re.compile(r"^\s*Exec\w+\s*=\s*[-@:+!|]*(\S+)", re.M)
_UNIT = re.compile(r".+\.(service|socket|timer|path|target|mount|automount|swap|device|slice|scope)")


def switch_off_agents(tree: Tree, marks: Marks) -> Iterator[str]:
    """Change ``tree`` and yield a line for each reason, with the names of all that was switched off."""
    finder, index = Channels(tree, marks), _Index(tree)
    found: dict[str, list[str]] = {}
    for part in (_masked_units, _masked_generators, _masked_rules, _off_services, _off_scripts):
        for why, name in part(tree, index, finder):
            found.setdefault(why, []).append(name)
    for why, names in found.items():
        yield f"switched off, since {why}: {', '.join(names)}"
    for name in [name for name in tree.entries if _TABLES.fullmatch(name)]:
        yield from _table(tree, name, finder)


def named_services(tree: Tree, patterns: Sequence[str]) -> list[str]:
    """Switch off the SysV and OpenRC services whose names are those of units in ``patterns``; return their names."""
    names = sorted(
        f"{folder}/{name}"
        for name, folder in _Index(tree).first(_SERVICES)
        if any(fnmatchcase(f"{name}.service", pattern) for pattern in patterns)
    )
    found = [name for name in names if (entry := tree.find(name)) is not None and entry.mode & 0o111]
    for name in found:
        disable_service(tree, name)
    return found


def disable_service(tree: Tree, script: str) -> None:
    """Take a service out of all runlevels of SysV and OpenRC. Its ``script`` stays, and cannot be executed."""
    name = script.rpartition("/")[2]
    link = re.compile(rf"etc/(runlevels/[^/]+/{re.escape(name)}|(rc\.d/)?rc[0-6S]\.d/[SK]\d\d{re.escape(name)})")
    for each in [each for each in tree.entries if link.fullmatch(each)]:
        del tree.entries[each]
    _not_executable(tree, script)


class _Index:
    """The names in each directory, found in one pass."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._names: dict[str, list[str]] = {}
        for name in sorted(tree.entries):
            above, _, last = name.rpartition("/")
            self._names.setdefault(above, []).append(last)

    def names(self, folder: str) -> list[str]:
        entry = self._tree.find(folder)
        return self._names.get(entry.name, []) if entry is not None else []

    def first(self, folders: tuple[str, ...]) -> list[tuple[str, str]]:
        """Each file name that has no mask, with the first of the folders that has it."""
        found: dict[str, str] = {}
        for folder in folders:
            for name in self.names(folder):
                entry = self._tree.find(f"{folder}/{name}")
                if entry is None or entry.kind is not Kind.DIRECTORY:
                    found.setdefault(name, folder)
        return [(name, folder) for name, folder in sorted(found.items()) if self._is_file(f"{folder}/{name}")]

    def _is_file(self, path: str) -> bool:
        entry = self._tree.find(path)
        return entry is not None and entry.kind is Kind.FILE


def _masked_units(tree: Tree, index: _Index, finder: Channels) -> Iterator[tuple[str, str]]:
    for folders, mask in ((_SYSTEM, UNITS), (_USER, _USER[1])):
        for name, folder, why in list(_units(tree, index, finder, folders)):
            tree.link(f"{folder if folder == folders[0] else mask}/{name}", "/dev/null")
            yield why, name


def _units(tree: Tree, index: _Index, finder: Channels, folders: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """The units and drop-ins (as UNIT.d/NAME) to switch off, with their folder and the reason."""
    for name, folder in index.first(folders):
        if _UNIT.fullmatch(name) and not finder.judged(name) and (why := _unit(tree.text(f"{folder}/{name}"), finder)):
            yield name, folder, why
    for directory in sorted({name for folder in folders for name in index.names(folder) if name.endswith(".d")}):
        for name, folder in index.first(tuple(f"{each}/{directory}" for each in folders)):
            if name.endswith(".conf") and (why := _unit(tree.text(f"{folder}/{name}"), finder)):
                yield f"{directory}/{name}", folder.removesuffix(f"/{directory}"), why


def _masked_generators(tree: Tree, index: _Index, finder: Channels) -> Iterator[tuple[str, str]]:
    for folders in _GENERATORS:
        for name, folder in index.first(folders):
            if why := finder.of_program(f"/{folder}/{name}"):
                tree.link(f"{folders[0]}/{name}", "/dev/null")
                yield why, name


def _masked_rules(tree: Tree, index: _Index, finder: Channels) -> Iterator[tuple[str, str]]:
    for name, folder in index.first(_RULES):
        if why := _rule(tree.text(f"{folder}/{name}"), finder):
            tree.link(f"{_RULES[0]}/{name}", "/dev/null")
            yield why, name


def _off_services(tree: Tree, index: _Index, finder: Channels) -> Iterator[tuple[str, str]]:
    for name, folder in index.first(_SERVICES):
        entry = tree.find(f"{folder}/{name}")
        texts = [tree.text(path) for path in (f"{folder}/{name}", f"etc/conf.d/{name}", f"etc/default/{name}")]
        if entry is None or not entry.mode & 0o111 or finder.judged(name):
            continue
        if why := finder.of_text("\n".join(texts)):
            disable_service(tree, f"{folder}/{name}")
            yield why, f"/{folder}/{name}"


def _off_scripts(tree: Tree, _: _Index, finder: Channels) -> Iterator[tuple[str, str]]:
    for name, entry in list(tree.entries.items()):
        if entry.kind is not Kind.FILE or not name.startswith(("etc/", "usr/lib/", "lib/")):
            continue
        sourced = bool(_SOURCED.fullmatch(name))
        if not sourced and not (entry.mode & 0o111 and _SCRIPTS.fullmatch(name)):
            continue
        # A script may be a program file, too.
        if why := finder.of_program(f"/{name}") or finder.of_text(tree.text(name) if sourced else ""):
            if sourced:
                tree.write(name, "")
            else:
                _not_executable(tree, name)
            yield why, f"/{name}"


def _unit(text: str, finder: Channels) -> str:
    text = _SILENT_LINE.sub("", text.replace("\\\n", " "))
    programs = [match[1] for match in _RUNS.finditer(text)]
    return finder.of_text(text) or next((why for name in programs if (why := finder.of_program(name))), "")


def _rule(text: str, finder: Channels) -> str:
    """A rule counts if it starts a program or a unit. Rules that only give names to devices stay."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("#") or not _STARTS.search(line):
            continue
        if why := _PORTS_REASON if _PORTS.search(line) else finder.of_text(line):
            return why
    return ""


def _not_executable(tree: Tree, name: str) -> None:
    entry = tree.find(name)
    if entry is not None and entry.kind is Kind.FILE:
        tree.entries[entry.name] = replace(entry, mode=entry.mode & ~0o111)


def _table(tree: Tree, name: str, finder: Channels) -> Iterator[str]:
    lines = tree.text(name).splitlines()
    off = {number: why for number, line in enumerate(lines) if (why := finder.of_text(line))}
    if off:
        tree.write(name, "".join(f"# {line}\n" if number in off else f"{line}\n" for number, line in enumerate(lines)))
        yield from (f"switched off in /{name}, since {why}: {lines[number].strip()}" for number, why in off.items())
