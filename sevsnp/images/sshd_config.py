# SPDX-License-Identifier: Apache-2.0
"""Evaluates an image's sshd_config(5) for one login by key, as sshd itself would: Include, Match, first value wins."""

import ipaddress
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from sevsnp.archives.tree import Tree

# openSUSE and others have the packaged file below /usr, and read it where /etc has none.
FILES = ("etc/ssh/sshd_config", "usr/etc/ssh/sshd_config")
# QEMU's user network: the connections that it forwards come from its gateway.
_CLIENT, _SERVER, _PORT = "10.0.2.2", "10.0.2.15", "22"
_ANYWHERE = ("0.0.0.0", "::", "*")  # noqa: S104 (found in files, not listened at)
_DEEPEST = 16
_LISTS = ("allowusers", "denyusers", "allowgroups", "denygroups", "port", "listenaddress")


@dataclass(frozen=True)
class Account:
    """The account that logs in: its name, its home (absolute), the names of its groups, its number."""

    name: str
    home: str
    groups: tuple[str, ...]
    uid: str = ""


@dataclass(frozen=True)
class Option:
    """A value that is in force: its words, and the file and line that it is from, for messages."""

    words: tuple[str, ...]
    where: str


@dataclass
class Config:
    """What is in force for the account, by keyword in lower case. A list has all of its lines."""

    values: dict[str, Option] = field(default_factory=dict)
    lists: dict[str, list[Option]] = field(default_factory=dict)

    def value(self, keyword: str, default: str) -> Option:
        """The first value of a keyword; ``default``, which has no place, if there is none."""
        return self.values.get(keyword, Option(tuple(default.split()), ""))


def read_config(tree: Tree, account: Account) -> Config:
    """The configuration of the image's sshd for the account. Without a file it is sshd's default."""
    name = next((name for name in FILES if tree.find(name)), "")
    everywhere, matched = Config(), Config()
    for keyword, option, in_match in _lines(tree, name, account, 0) if name else ():
        config = matched if in_match else everywhere
        if keyword in _LISTS:
            config.lists.setdefault(keyword, []).append(option)
        else:
            config.values.setdefault(keyword, option)
    # A value of a Match block that applies wins over one outside, and a list of it replaces the list outside.
    return Config(everywhere.values | matched.values, everywhere.lists | matched.lists)


def _lines(tree: Tree, name: str, account: Account, depth: int) -> Iterator[tuple[str, Option, bool]]:
    """Each line that applies: keyword, words, and whether it is in a Match block."""
    applies, in_match = True, False
    for number, line in enumerate(tree.text(name).splitlines(), 1):
        words = _words(line)
        if not words:
            continue
        keyword, option = words[0].lower(), Option(tuple(words[1:]), f"/{name}, line {number}")
        if keyword == "match":
            in_match, applies = True, _matches(option.words, account)
        elif applies and keyword == "include" and depth < _DEEPEST:
            for pattern in option.words:
                for file in _glob(tree, pattern):
                    # A Match block ends with its file.
                    for each, value, inner in _lines(tree, file, account, depth + 1):
                        yield each, value, in_match or inner
        elif applies:
            yield keyword, option, in_match


def _words(line: str) -> list[str]:
    line = re.sub(r"^\s*([A-Za-z0-9]+)\s*=\s*", r"\1 ", line)
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an open quote, with which sshd does not start
        return line.split()


def _glob(tree: Tree, pattern: str) -> list[str]:
    path = pattern if pattern.startswith("/") else f"/etc/ssh/{pattern}"
    folder, _, name = path.strip("/").rpartition("/")
    return [f"{folder}/{each}" for each in tree.names(folder) if fnmatchcase(each, name)]


def _matches(words: Sequence[str], account: Account) -> bool:
    """Whether a Match line applies to a connection of the account through QEMU's user network."""
    facts = {
        "user": (account.name,),
        "group": account.groups,
        "host": (_CLIENT,),
        "address": (_CLIENT,),
        "localaddress": (_SERVER,),
        "localport": (_PORT,),
    }
    left = [part for word in words for part in (word.split("=", 1) if "=" in word else [word])]
    while left:
        criterion = left.pop(0).lower()
        if criterion == "all":
            continue
        if criterion not in facts or not left or not in_list(left.pop(0), facts[criterion]):
            return False
    return True


def in_list(patterns: str, names: Sequence[str]) -> bool:
    """ssh_config(5), PATTERNS: a list with commas; a pattern with ``!`` that matches excludes."""
    found = False
    for pattern in patterns.split(","):
        if any(_is_like(name, pattern.removeprefix("!")) for name in names):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _is_like(name: str, pattern: str) -> bool:
    if "/" in pattern:
        try:
            return ipaddress.ip_address(name) in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    return like(name, pattern)


def like(name: str, pattern: str) -> bool:
    """Whether ``name`` matches a single pattern of sshd, in which only ``*`` and ``?`` are special."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def key_files(config: Config, account: Account) -> list[str]:
    """The files, as paths from the root, in which sshd looks for the account's keys; none for ``none``."""
    found = []
    for word in config.value("authorizedkeysfile", ".ssh/authorized_keys .ssh/authorized_keys2").words:
        if word.lower() == "none":
            return []
        values = {"%": "%", "h": account.home, "u": account.name, "U": account.uid}
        path = re.sub("%(.)", lambda token, values=values: values.get(token[1], ""), word)  # type: ignore[misc]
        found.append((path if path.startswith("/") else f"{account.home}/{path}").strip("/"))
    return found


def barred(config: Config, account: Account, *, locked: bool) -> Iterator[tuple[str, str]]:
    """Each option that keeps the account from a login by key at port 22, and what it had to be.

    ``locked``: the account's password is locked with ``!``, which sshd obeys unless it uses PAM.
    """
    yield from _not_reached(config)
    for keyword, names, what in (
        ("denyusers", (account.name,), "DenyUsers"),
        ("allowusers", (account.name,), "AllowUsers"),
        ("denygroups", account.groups, "DenyGroups"),
        ("allowgroups", account.groups, "AllowGroups"),
    ):
        options = config.lists.get(keyword, [])
        hits = [option for option in options if any(_is_named(word, names) for word in option.words)]
        if keyword.startswith("deny") and hits:
            yield _found(what, hits[0]), f"without {account.name}"
        if keyword.startswith("allow") and options and not hits:
            yield _found(what, options[0]), f"with {names[0] if names else account.name}"
    if config.value("pubkeyauthentication", "yes").words[:1] == ("no",):
        yield _found("PubkeyAuthentication", config.values["pubkeyauthentication"]), "yes"
    methods = config.value("authenticationmethods", "any")
    if not any(word.split(":")[0] in ("any", "publickey") for word in methods.words):
        yield _found("AuthenticationMethods", methods), "publickey"
    if not key_files(config, account):
        yield _found("AuthorizedKeysFile", config.values["authorizedkeysfile"]), ".ssh/authorized_keys"
    if locked and config.value("usepam", "no").words[:1] != ("yes",):
        yield f"the password of {account.name} is locked in /etc/shadow, and sshd does not use PAM", "* in place of !"


def _is_named(pattern: str, names: Sequence[str]) -> bool:
    name, at, host = pattern.partition("@")
    return any(like(each, name) for each in names) and (not at or in_list(host, (_CLIENT,)))


def _not_reached(config: Config) -> Iterator[tuple[str, str]]:
    ports = config.lists.get("port", [])
    if ports and not any(option.words[:1] == (_PORT,) for option in ports):
        yield _found("Port", ports[0]), _PORT
    addresses = config.lists.get("listenaddress", [])
    if addresses and not any(_is_reached(option.words[0]) for option in addresses if option.words):
        yield _found("ListenAddress", addresses[0]), _ANYWHERE[0]


def _is_reached(text: str) -> bool:
    bracket = re.fullmatch(r"\[(.*)\](?::(\d+))?", text)
    single = re.fullmatch(r"([^:]*)(?::(\d+))?", text)
    match = bracket or single
    host, port = (match[1], match[2]) if match else (text, None)
    return host in (*_ANYWHERE, _SERVER) and port in (None, _PORT)


def _found(what: str, option: Option) -> str:
    return f"{option.where}: {what} {' '.join(option.words)}"
