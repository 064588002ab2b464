# SPDX-License-Identifier: Apache-2.0
"""One canary for each class of the deny-list: it is in the source tar and not in the raw bytes of the image."""

from pathlib import Path
from textwrap import indent

import pytest

from sevsnp.archives.rootfs import Layer, directory_entry, make_rootfs, text_entry
from sevsnp.archives.tar import Content, Entry, Kind, read_tar
from sevsnp.errors import UserError
from sevsnp.images.filesystem import make_ext4
from sevsnp.images.identity import Change, DenyList, IdentityFilter, ImageKind, kept_lines, summary

PROJECT = Path(__file__).resolve().parents[3]
TOOLS = PROJECT / "build/snp-release/bin"
LIST = PROJECT / "guest-vm/denied.yaml"
DENIED = DenyList(LIST)
# An encrypted root keeps the keys that are its owner's.
OWNERS = (
    "etc/NetworkManager/system-connections/wifi.nmconnection",
    "etc/wireguard/wg0.conf",
    "etc/ssl/private/server.pem",
    "opt/app/private/tls.key",
    "home/user/.gnupg/secring.gpg",
    "home/user/.netrc",
    "root/.git-credentials",
    "home/user/.aws/credentials",
    "etc/apt/auth.conf.d/mirror.conf",
    "etc/security/opasswd",
    "etc/shadow-",
)

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n"  # private-key-marker: what the filter looks for, and no key

# One path a class, at least: the canary's content is made from the path.
PLANTED = (
    "etc/ssh/ssh_host_ed25519_key",
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "etc/credstore/secret",
    "var/lib/cloud/seed/nocloud/user-data",
    "var/lib/cloud/instances/i-1/obj.pkl",
    "root/.bash_history",
    "home/user/.cache/pip/http/page",
    "home/user/.python_history",
    "var/lib/apt/lists/mirror_Packages",
    "var/cache/apt/archives/a.deb",
    "var/log/dpkg.log",
    "var/log/cloud-init-output.log",
    "var/log/syslog.1",
    "var/log/journal/0123/system.journal",
    "var/log/wtmp",
    "var/log/btmp",
    "var/log/lastlog",
    "var/lib/dhcp/dhclient.leases",
    "etc/NetworkManager/system-connections/wifi.nmconnection",
    "etc/wireguard/wg0.conf",
    "etc/ssl/private/server.pem",
    "opt/app/private/tls.key",
    "root/.ssh/id_ed25519",
    "home/user/.gnupg/secring.gpg",
    "home/user/.netrc",
    "root/.git-credentials",
    "home/user/.aws/credentials",
    "etc/apt/auth.conf.d/mirror.conf",
    "etc/security/opasswd",
    "etc/shadow-",
    "srv/project/.doit.db",
    "swapfile",
    "tmp/left-over",
)
KEPT = (
    "home/user/.cache/huggingface/hub/model.safetensors",
    "core/notes.txt",
    "etc/ssh/sshd_config",
    "etc/ssl/certs/ca.pem",
    "usr/share/ca-certificates/mozilla/Root.crt",
    "home/user/.ssh/authorized_keys",
    "usr/lib/python3/test/keycert.pem",
    "etc/hostname",
    "usr/share/doc/log/README.log",
)
HASH = "$y$j9T$canaryhash$canary"


def canary(name: str) -> str:
    return f"<canary of {name}>"


def source() -> Layer:
    entries = [text_entry(name, canary(name)) for name in (*PLANTED, *KEPT)]
    entries += [
        text_entry("etc/odd/place", f"{canary('hidden key')}\n{KEY}"),
        text_entry("usr/lib/python3/test/key.py", f"{canary('public key')}\n{KEY}"),
        text_entry("etc/shadow", f"root:{HASH}:1::::::\nopen::1::::::\noff:!{HASH}:1::::::\nno:*:1::::::\n", 0o640),
        text_entry("etc/passwd", f"root:{HASH}:0:0::/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"),
    ]
    link = Entry("etc/innocent", Kind.FILE, 0o644, content=Content.literal("root/.ssh/id_ed25519", b"<canary of link>"))
    linked = [e for e in entries if e.name != "root/.ssh/id_ed25519"]
    key = Entry("root/.ssh/id_ed25519", Kind.FILE, 0o600, content=link.content)
    return Layer("source", [*linked, key, link])


def image(tmp_path: Path, *filters: IdentityFilter) -> tuple[bytes, dict[str, Entry]]:
    """Raw bytes: of an ext4 image where the tools are there, else of the tar it would be made from."""
    tar, target = tmp_path / "rootfs.tar", tmp_path / "image"
    make_rootfs([source()], tar, filters=filters)
    if not (TOOLS / "mke2fs").exists():
        return tar.read_bytes(), read_tar(tar)
    make_ext4(tar, target, tools=TOOLS)
    return target.read_bytes(), read_tar(tar)


EXPECTED = [name for name in PLANTED if name != "root/.ssh/id_ed25519"]


def test_control_the_unfiltered_image_has_every_canary(tmp_path: Path) -> None:
    raw, _ = image(tmp_path)
    wanted = [*map(canary, (*EXPECTED, *KEPT)), "<canary of link>", canary("hidden key"), HASH]
    assert [text for text in wanted if text.encode() not in raw] == []


@pytest.mark.parametrize("kind", ImageKind)
def test_no_canary_is_left(tmp_path: Path, kind: ImageKind) -> None:
    clean = IdentityFilter(kind, DenyList(LIST, kind))
    raw, entries = image(tmp_path, clean)
    owners = [*map(canary, (*OWNERS, "hidden key")), "<canary of link>"]
    wanted = [*map(canary, (name for name in EXPECTED if name not in OWNERS))]
    kept = [*map(canary, (*KEPT, "public key"))]
    for more in owners:
        (wanted if kind is ImageKind.VERITY else kept).append(more)
    assert [text for text in wanted if text.encode() in raw] == []
    assert [text for text in kept if text.encode() not in raw] == []
    # The host reads a verity image; of an encrypted one the passwords are its owner's affair.
    assert (HASH.encode() in raw) == (kind is ImageKind.LUKS)
    machine_id = entries["etc/machine-id"].content
    assert machine_id is not None and machine_id.size == 0
    names = {removal.name for removal in clean.removed}
    hidden = {*OWNERS, "root/.ssh/id_ed25519", "etc/innocent", "etc/odd/place"}
    assert names >= set(PLANTED) - hidden and not names & set(KEPT)
    assert names & hidden == (hidden if kind is ImageKind.VERITY else set())
    assert len(summary(clean.removed)) <= len(clean.removed)


def test_every_account_is_locked(tmp_path: Path) -> None:
    _, entries = image(tmp_path, IdentityFilter(ImageKind.VERITY, DENIED))
    shadow, passwd = entries["etc/shadow"], entries["etc/passwd"]
    assert shadow.content and passwd.content and shadow.mode == 0o640
    rows = [line.split(":")[:2] for line in shadow.content.read().decode().splitlines()]
    assert rows == [["root", "*"], ["open", "*"], ["off", "!*"], ["no", "*"]]
    assert passwd.content.read().decode().startswith("root:*:0:0:")


def test_every_class_has_a_canary() -> None:
    clean = IdentityFilter(ImageKind.VERITY, DENIED)
    list(clean(source().entries))
    assert DENIED.reasons <= {removal.reason for removal in clean.removed}


def test_cloud_init_is_switched_off_if_it_is_installed() -> None:
    clean = IdentityFilter(ImageKind.LUKS, DENIED)
    names = [entry.name for entry in clean([text_entry("etc/cloud/cloud.cfg", "x")])]
    assert names == ["etc/cloud/cloud-init.disabled", "etc/cloud/cloud.cfg"]
    assert not list(IdentityFilter(ImageKind.LUKS, DENIED)([]))


@pytest.mark.parametrize("name", ["app/server.pem", "data/id", "usr/local/etc/ssl/server.pem"])
def test_a_private_key_is_found_in_any_directory(name: str) -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"
    assert DENIED.reason(text_entry(name, key)) == "private key"
    assert DENIED.reason(text_entry(name, "no key\n")) == ""
    # What packages ship below /usr is public.
    assert DENIED.reason(text_entry(f"usr/share/doc/{name}", key)) == ""


def test_a_pattern_with_a_tilde_matches_every_home_directory(tmp_path: Path) -> None:
    (tmp_path / "denied.yaml").write_text('traces: {history: [~/.history, "*/.log", "var/x/**"]}\n')
    found = DenyList(tmp_path / "denied.yaml")
    for name, reason in {
        "root/.history": "history", "home/a/.history": "history", "root/.log": "history", "root/.history/x": "",
        "var/x/y": "history",
        "home/a/b/.history": "", "home/.history": "", "srv/.history": "", "home/a/.log": "", "~/.history": "",
    }.items():  # fmt: skip
        assert found.reason(text_entry(name, "x")) == reason, name
    for name, reason in {"root/.history": "", "var/x": "", "var/x/y": "history"}.items():
        assert found.reason(directory_entry(name)) == reason, name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found a NoneType, expected lists"),
        ("[etc]", "found a list, expected lists"),
        ("log: [a]\nlog: [b]", "line 3: log is given twice"),
        ("log: [a]\njournal: [a]", "journal: a is given twice"),
        ("log:", "log: found None, expected a list"),
        ("log: []", "log: found [], expected a list"),
        ("log: a", "log: found 'a', expected a list"),
        ("log: {a: b}", "log: found {'a': 'b'}, expected a list"),
        ("log: [1]", "log: found 1, expected a path"),
        ("log: [~]", "log: found None, expected a path"),
        ("log: ['']", "log: found '', expected a path"),
        ("log: [/etc]", "log: found '/etc', expected a path from the root"),
        ("log: [etc/]", "log: found 'etc/', expected a path from the root"),
        ('log: ["a\\nb"]', "expected a path from the root"),
        ("1: [a]", "found 1, expected a text"),
        ("log: [*]", "line 2"),
    ],
)
def test_a_malformed_deny_list_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "denied.yaml"
    file.write_text("traces:\n" + indent(text, "  "))
    with pytest.raises(UserError) as refused:
        DenyList(file)
    assert refused.value.message.startswith(f"{file}: ") and words in refused.value.message
    file.write_text("traces: {log: [a]}\nsecrets: {journal: [b]}")
    assert DenyList(file).reasons == {"log", "journal"}  # control
    file.write_text("log: [a]")
    with pytest.raises(UserError, match="found log, expected the keys secrets, "):
        DenyList(file)


def test_all_hard_links_of_a_secret_are_removed_but_not_those_of_a_cached_file() -> None:
    def linked(*names: str) -> list[Entry]:
        content = Content.literal(names[0], b"bytes")
        return [Entry(name, Kind.FILE, 0o644, content=content) for name in names]

    clean = IdentityFilter(ImageKind.LUKS, DenyList(LIST, ImageKind.LUKS))
    entries = [
        *linked("home/a/.cache/uv/wheel", "home/a/app/wheel"),
        *linked("var/cache/apt/archives/a.deb", "srv/a.deb"),
        *linked("etc/ssh/ssh_host_rsa_key", "srv/key"),
    ]
    assert [entry.name for entry in clean(entries)] == ["home/a/app/wheel", "srv/a.deb"]
    assert summary(clean.removed)[-1] == "removed hard link to a removed file: /srv/key"


@pytest.mark.parametrize(("kind", "note"), [(ImageKind.VERITY, ", which the host can read"), (ImageKind.LUKS, "")])
def test_patterns_of_the_user_change_the_deny_list_and_are_named(kind: ImageKind, note: str) -> None:
    change = Change.parse("/etc/ssh/ssh_host_rsa_key, var/log/app/,srv/none", "srv/scratch")
    clean = IdentityFilter(kind, DenyList(LIST, kind, change))
    entries = [
        directory_entry("var/log/app/a"),
        *(text_entry(name, "x") for name in ("var/log/app/a/b.log", "var/log/other/c.log")),
        *(text_entry(f"etc/ssh/ssh_host_{name}_key", "x") for name in ("rsa", "dsa")),
        directory_entry("srv/scratch"),
        text_entry("srv/scratch/x", "x"),
    ]
    assert [entry.name for entry in clean(entries)] == [
        *("var/log/app/a", "var/log/app/a/b.log", "etc/ssh/ssh_host_rsa_key")
    ]
    assert kept_lines(clean) == [
        f"kept SSH host key: /etc/ssh/ssh_host_rsa_key (KEEP: etc/ssh/ssh_host_rsa_key){note}",
        "kept log: /var/log/app/a and 1 more (KEEP: var/log/app)",
        "KEEP: srv/none: the deny-list removes nothing of this name",
    ]
    assert "removed what DROP names: /srv/scratch and 1 more" in summary(clean.removed)
