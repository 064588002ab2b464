# SPDX-License-Identifier: Apache-2.0
"""What must not be in an image: identities a clone would share, secrets the host could read, traces of the builder.

A verity image lies on the host's disk in clear; an encrypted one is cloned and handed on. The list is applied to the
stream of entries before any file system is made, so that nothing removed survives in free space either.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from sevsnp.archives.rootfs import expression, text_entry
from sevsnp.archives.tar import Content, Entry, Kind


class ImageKind(Enum):
    """What the image will be: VERITY is readable by the host, LUKS only by the guest and its owner."""

    VERITY = "verity"
    LUKS = "luks"


@dataclass(frozen=True)
class Removal:
    """One entry that was taken out or changed: its ``name``, the class of the deny-list, and what was done."""

    name: str
    reason: str
    action: str


_HOMES = ("root", "home/*")


def _in_homes(*names: str) -> tuple[str, ...]:
    return tuple(f"{home}/{name}" for home in _HOMES for name in names)


# (class, patterns): `*` does not cross a `/`, `**` does; a pattern takes everything below with it, and `x/**` keeps x.
DENIED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("SSH host key", ("etc/ssh/ssh_host_*", "etc/dropbear*/*_host_key")),
    (
        "random seed",
        ("var/lib/systemd/random-seed", "var/lib/urandom/**", "var/lib/random-seed", "boot/**/random-seed"),
    ),
    (
        "systemd credential",
        (
            "var/lib/systemd/credential.secret",
            "etc/credstore/**",
            "etc/credstore.encrypted/**",
            "var/lib/systemd/tpm2-srk-*",
        ),
    ),
    ("D-Bus machine id", ("var/lib/dbus/machine-id",)),
    (
        "cloud-init data",
        (
            "var/lib/cloud/**",
            "etc/cloud/cloud.cfg.d/99-installer.cfg",
            "etc/cloud/ds-identify.cfg",
            "run/cloud-init/**",
        ),
    ),
    (
        "history",
        (
            *_in_homes(
                ".*_history",
                ".history",
                ".lesshst",
                ".viminfo",
                ".wget-hsts",
                ".local/share/recently-used.xbel",
                ".local/share/fish/fish_history",
            ),
            *_in_homes(".sudo_as_admin_successful", ".cache/**"),
        ),
    ),
    ("package cache", ("var/lib/apt/lists/**", "var/cache/apt/**", "var/cache/dnf/**", "var/cache/yum/**")),
    ("journal", ("var/log/journal/**",)),
    ("log", ("var/log/**/*.log", "var/log/**/*.log.*", "var/log/*/**", "var/log/dmesg*", "var/log/installer/**")),
    ("log", ("var/log/syslog*", "var/log/messages*", "var/log/auth*", "var/log/secure*", "var/log/debug*")),
    ("login record", ("var/log/wtmp*", "var/log/btmp*", "var/log/lastlog*", "var/log/faillog", "var/lib/wtmpdb/**")),
    ("login record", ("var/lib/lastlog/**", "var/log/tallylog")),
    ("DHCP lease", ("var/lib/dhcp/**", "var/lib/dhclient/**", "var/lib/dhcpcd/**", "var/lib/NetworkManager/**")),
    ("DHCP lease", ("var/lib/systemd/network/**", "etc/udev/rules.d/70-persistent-net.rules")),
    (
        "network secret",
        (
            "etc/NetworkManager/system-connections/**",
            "etc/wireguard/**",
            "etc/wpa_supplicant/*.conf",
            "var/lib/iwd/**",
            "etc/ppp/*-secrets",
            "etc/ipsec.secrets",
        ),
    ),
    (
        "private key",
        (
            "etc/ssl/private/**",
            "etc/pki/**/private/**",
            "etc/letsencrypt/**",
            "**/private/**/*.key",
            "**/private/**/*.pem",
            "etc/cryptsetup-keys.d/**",
            "etc/luks/**",
            "etc/krb5.keytab",
            "var/lib/samba/private/**",
            *_in_homes(".ssh/id_*", ".ssh/identity", ".gnupg/**", "**/*.key", "**/*_rsa", "**/*_ed25519"),
        ),
    ),
    (
        "login for another service",
        (
            *_in_homes(
                ".netrc", ".git-credentials", ".config/git/credentials", ".pgpass", ".my.cnf", ".pypirc", ".npmrc"
            ),
            *_in_homes(".aws/**", ".azure/**", ".config/gcloud/**", ".config/gh/**", ".docker/config.json", ".kube/**"),
            "etc/netrc",
            "etc/git-credentials",
            "etc/apt/auth.conf",
            "etc/apt/auth.conf.d/**",
            "etc/mysql/debian.cnf",
        ),
    ),
    ("password history", ("etc/security/opasswd",)),
    ("backup of an account file", ("etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-", "etc/sub?id-")),
    ("build database", ("**/.doit.db*",)),
    ("memory of a running system", ("swapfile", "swap.img", "var/lib/systemd/coredump/**", "var/crash/**", "core")),
    ("temporary file", ("tmp/**", "var/tmp/**", "run/**")),
)

# Keys lie in places no list knows; programs and their documentation under /usr are public, with their test keys.
_SEARCHED = re.compile(r"(?!usr/(?!local/)).*", re.DOTALL)
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s")
_LARGEST_KEY = 64 << 10

_ACCOUNTS = 1 << 20  # /etc/shadow of a large site, generously


def _machine_id(_: bytes) -> bytes:
    # Empty, not absent: absent would make the boot a first one, with units enabled by preset.
    return b""


def _lock_shadow(data: bytes) -> bytes:
    return _each_line(data, lambda old: b"!*" if old.startswith(b"!") else b"*")


def _lock_passwd(data: bytes) -> bytes:
    return _each_line(data, lambda old: old if old in (b"x", b"*", b"!") else b"*")


def _lock_gshadow(data: bytes) -> bytes:
    return _each_line(data, lambda old: old if old in (b"*", b"!") else b"!")


def _each_line(data: bytes, password: Callable[[bytes], bytes]) -> bytes:
    lines = []
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 1:
            fields[1] = password(fields[1])
        lines.append(b":".join(fields))
    return b"\n".join(lines)


Rewrite = Callable[[bytes], bytes]
_REWRITTEN: dict[str, tuple[str, str, Rewrite]] = {"etc/machine-id": ("machine id", "emptied", _machine_id)}
_REWRITTEN_VERITY: dict[str, tuple[str, str, Rewrite]] = {
    "etc/shadow": ("password hash", "locked", _lock_shadow),
    "etc/passwd": ("password hash", "locked", _lock_passwd),
    "etc/group": ("password hash", "locked", _lock_passwd),
    "etc/gshadow": ("password hash", "locked", _lock_gshadow),
}


@dataclass
class IdentityFilter:
    """A filter for :func:`sevsnp.archives.rootfs.make_rootfs`; ``removed`` then says what it took out."""

    kind: ImageKind
    removed: list[Removal] = field(default_factory=list)

    def __call__(self, entries: Iterable[Entry]) -> Iterable[Entry]:
        """The entries without what is denied, in their order. Raises UserError for an absurdly large account file."""
        kept, gone = [], set()
        rewritten = _REWRITTEN | (_REWRITTEN_VERITY if self.kind is ImageKind.VERITY else {})
        for entry in entries:
            reason = denied(entry)
            if reason:
                self.removed.append(Removal(entry.name, reason, "removed"))
                if entry.content is not None:
                    gone.add(entry.content.inode)
            elif entry.name in rewritten and entry.content is not None:
                kept.append(self._rewrite(entry, entry.content, *rewritten[entry.name], gone))
            else:
                kept.append(entry)
        result = []
        for entry in kept:
            # The same bytes under another name: a hard link to what was taken out.
            if entry.content is not None and entry.content.inode in gone and entry.content.size:
                self.removed.append(Removal(entry.name, "hard link to a removed file", "removed"))
            else:
                result.append(entry)
        return self._without_cloud_init(result)

    def _rewrite(
        self, entry: Entry, content: Content, reason: str, action: str, change: Rewrite, gone: set[tuple[str, int]]
    ) -> Entry:
        old = content.read(_ACCOUNTS)
        new = change(old)
        if new == old:
            return entry
        self.removed.append(Removal(entry.name, reason, action))
        gone.add(content.inode)
        return replace(entry, content=Content.literal(f"identity:{entry.name}", new))

    def _without_cloud_init(self, entries: Sequence[Entry]) -> Iterable[Entry]:
        """A disk labelled cidata is root in a guest with cloud-init: where there is one, switch it off for good."""
        marker = "etc/cloud/cloud-init.disabled"
        present = False
        for entry in entries:
            if entry.name.startswith("etc/cloud/") and not present:
                present = True
                if not any(other.name == marker for other in entries):
                    self.removed.append(Removal(marker, "cloud-init takes orders from the host", "switched off"))
                    yield text_entry(marker, "")
            yield entry


_BY_REASON = [(reason, "|".join(map(expression, patterns))) for reason, patterns in DENIED]
# Nearly no entry is denied: one look tells that, and only then which pattern it was matters.
_ANY = re.compile("|".join(each for _, each in _BY_REASON), re.DOTALL)


def denied(entry: Entry) -> str:
    """The class of the deny-list that ``entry`` falls into, or the empty string."""
    if _ANY.fullmatch(entry.name):
        return next(reason for reason, each in _BY_REASON if re.fullmatch(each, entry.name, re.DOTALL))
    content = entry.content
    if (
        entry.kind is Kind.FILE
        and content is not None
        and 0 < content.size <= _LARGEST_KEY
        and _SEARCHED.fullmatch(entry.name)
        and _PRIVATE_KEY.search(content.read())
    ):
        return "private key"
    return ""


def summary(removed: Sequence[Removal]) -> list[str]:
    """One line a class, for people: how many entries, and the first of them."""
    classes: dict[tuple[str, str], list[str]] = {}
    for removal in removed:
        classes.setdefault((removal.reason, removal.action), []).append(f"/{removal.name}")
    return [
        f"{action} {reason}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for (reason, action), names in classes.items()
    ]
