# SPDX-License-Identifier: Apache-2.0
"""The guest's own layer over stand-in packages, and (with --full) the real packages installed twice."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import Layer, make_rootfs, merge, text_entry
from sevsnp.archives.tar import Entry, Kind, read_tar
from sevsnp.errors import UserError
from sevsnp.images import guest_packages
from sevsnp.images.guest import guest_layer, make_guest_rootfs, read_public_key
from sevsnp.images.guest_config import read_guest
from sevsnp.images.guest_packages import make_packages_layer, read_packages
from sevsnp.keys.pairs import ensure_keys

PROJECT = Path(__file__).resolve().parents[2]
GUEST, FILES = PROJECT / "guest-vm/guest.yaml", PROJECT / "guest-vm/files"
DEBS = PROJECT / "build/debs/guest"

UNITS = ("ssh.service", "systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A packages layer with just the files that ours looks at."""
    entries = [
        text_entry("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
        text_entry("etc/shadow", "root:$y$hash:1:0:99999:7:::\n", 0o640),
        text_entry("etc/group", "root:x:0:\nshadow:x:42:\nsudo:x:27:\n"),
        text_entry("etc/gshadow", "root:*::\nshadow:*::\nsudo:*::\n", 0o640),
        text_entry("etc/skel/.bashrc", "# skeleton"),
        text_entry("etc/systemd/system/timers.target.wants/apt-daily.timer", ""),
        *(text_entry(f"usr/lib/systemd/system/{unit}", "") for unit in UNITS),
    ]
    make_rootfs([Layer("packages", entries)], tmp_path / "packages.tar")
    return tmp_path / "packages.tar"


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return ensure_keys(tmp_path / "config").user_public


def build(tmp_path: Path, packages: Path, public: Path, guest: Path = GUEST) -> dict[str, Entry]:
    output = tmp_path / "rootfs.tar"
    make_guest_rootfs(packages=packages, guest=guest, files=FILES, authorized_key=public, output=output)
    return read_tar(output)


def text(entries: dict[str, Entry], name: str) -> str:
    content = entries[name].content
    assert content is not None
    return content.read().decode()


def test_accounts(tmp_path: Path, packages: Path, public: Path) -> None:
    entries = build(tmp_path, packages, public)
    assert [line.split(":")[:2] for line in text(entries, "etc/shadow").splitlines()] == [["root", "*"], ["user", "*"]]
    assert "user:x:1000:1000::/home/user:/bin/bash\n" in text(entries, "etc/passwd")
    assert "sudo:x:27:user\n" in text(entries, "etc/group")
    assert text(entries, "etc/sudoers.d/user") == "user ALL=(ALL:ALL) NOPASSWD: ALL\n"
    assert entries["etc/sudoers.d/user"].mode == 0o440
    assert (entries["etc/shadow"].mode, entries["etc/shadow"].gid) == (0o640, 42)
    key, home = entries["home/user/.ssh/authorized_keys"], entries["home/user"]
    assert text(entries, key.name).split() == public.read_text().split()[:2]
    assert (key.mode, key.uid, home.mode, home.uid) == (0o600, 1000, 0o700, 1000)
    skeleton, own = entries["etc/skel/.bashrc"], entries["home/user/.bashrc"]
    assert own.uid == 1000 and skeleton.uid == 0  # a copy: as hard links they would have one owner
    assert own.content and skeleton.content and own.content.inode != skeleton.content.inode


def test_nothing_opens_a_shell_on_the_console(tmp_path: Path, packages: Path, public: Path) -> None:
    entries = build(tmp_path, packages, public)
    for unit in ("getty@.service", "serial-getty@.service", "console-getty.service", "debug-shell.service"):
        assert entries[f"etc/systemd/system/{unit}"].target == "/dev/null", unit
    for unit in ("emergency", "rescue"):
        words = text(entries, f"etc/systemd/system/{unit}.service.d/10-guest.conf")
        assert "ExecStart=\nExecStart=/usr/bin/systemctl --no-block poweroff\n" in words
    assert "etc/systemd/system/timers.target.wants/apt-daily.timer" not in entries
    assert not [name for name in entries if "ssh_host_" in name]


def test_sshd_takes_keys_only() -> None:
    words = dict(
        line.split(maxsplit=1)
        for line in (FILES / "etc/ssh/sshd_config.d/10-guest.conf").read_text().splitlines()
        if not line.startswith("#")
    )
    assert words["HostKey"] == "/etc/ssh/ssh_host_ed25519_key" and words["AuthenticationMethods"] == "publickey"
    for name in ("PasswordAuthentication", "KbdInteractiveAuthentication", "PermitRootLogin", "PermitEmptyPasswords"):
        assert words[name] == "no", name


def test_a_file_below_guest_vm_files_is_added_to_the_root(tmp_path: Path, packages: Path, public: Path) -> None:
    files = tmp_path / "files"
    shutil.copytree(FILES, files)
    (files / "etc/motd").write_text("hello\n")
    before = merge([guest_layer(read_guest(GUEST), FILES, read_tar(packages), "k")])
    after = merge([guest_layer(read_guest(GUEST), files, read_tar(packages), "k")])
    assert set(after) - set(before) == {"etc/motd"}


def test_umask_and_directory_do_not_change_the_root(tmp_path: Path, packages: Path, public: Path) -> None:
    results = []
    for folder, umask in (("one", 0o022), ("other one", 0o077)):
        where = tmp_path / folder
        old = os.umask(umask)
        try:
            where.mkdir()
            shutil.copytree(FILES, where / "files", copy_function=shutil.copyfile)
            script = where / "files" / "usr" / "local" / "bin" / "script"
            script.parent.mkdir(parents=True)
            script.write_text("#!/bin/sh\n")
            script.chmod(0o700)
            make_guest_rootfs(
                packages=packages, guest=GUEST, files=where / "files", authorized_key=public, output=where / "r"
            )
        finally:
            os.umask(old)
        results.append((where / "r").read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hostname: UPPER", "hostname: found 'UPPER'"),
        ("hostname: a\nfoo: 1", "unknown key 'foo'"),
        ("hostname: a\nusers: [{name: root2, uid: 0}]", "uid: found 0"),
        ("hostname: a\nusers: [{name: 'a b', uid: 1001}]", "users: name"),
        ("hostname: a\nusers: [{name: u, uid: 1001, password: x}]", "unknown key 'password'"),
        ("hostname: a\nmask: [../x.service]", "mask: found"),
        ("hostname: a\nenable: {multi-user.target: [nothing.service]}", "nothing.service: no such unit"),
        ("hostname: a\nusers: [{name: u, uid: 1001, groups: [nogroup2]}]", "no group nogroup2"),
        ("hostname: a\nusers: [{name: root, uid: 1001}]", "already taken"),
        ("hostname: [", "not YAML"),
        ("- a", "expected `name: value` lines"),
    ],
)
def test_bad_guest_files(tmp_path: Path, packages: Path, public: Path, line: str, words: str) -> None:
    guest = tmp_path / "guest.yaml"
    guest.write_text(line)
    with pytest.raises(UserError) as caught:
        build(tmp_path, packages, public, guest)
    assert words in caught.value.message and "guest.yaml" in caught.value.message
    assert not (tmp_path / "rootfs.tar").exists()


@pytest.mark.parametrize("data", ["", "ssh-ed25519 AAAA", "a\nb\n", "-----BEGIN\n"])
def test_bad_public_keys(tmp_path: Path, data: str) -> None:
    (tmp_path / "k.pub").write_text(data)
    with pytest.raises(UserError, match=r"k\.pub: expected one OpenSSH public key line"):
        read_public_key(tmp_path / "k.pub")


def deb(path: Path, name: str, version: str) -> Path:
    root = path / f"{name}_{version}"
    (root / "DEBIAN").mkdir(parents=True)
    root.chmod(0o755)
    (root / "DEBIAN").chmod(0o755)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    subprocess.run(["dpkg-deb", "-b", root, f"{root}.deb"], check=True, capture_output=True)
    return Path(f"{root}.deb")


def test_bad_package_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no guest packages"):
        make_packages_layer(tmp_path, tmp_path / "o.tar")
    one, two = deb(tmp_path, "x", "1"), deb(tmp_path, "x", "2")
    with pytest.raises(UserError, match="expected one version"):
        read_packages([one, two])
    (tmp_path / "broken.deb").write_bytes(b"no deb")
    with pytest.raises(UserError, match=r"broken\.deb"):
        read_packages([tmp_path / "broken.deb"])


def test_missing_user_namespaces_are_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(UserError, match="newuidmap: command not found") as caught:
        guest_packages.namespace_mode()
    assert "apt-get install uidmap" in caught.value.hint

    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/bin/newuidmap")

    with pytest.raises(UserError, match="/etc/subuid: no range of subordinate ids for 4711"):
        guest_packages.namespace_mode()

    monkeypatch.setattr(guest_packages, "check_subordinate_ids", lambda: None)

    def fail(*_: object, **__: object) -> bytes:
        raise UserError("exit code 1")

    monkeypatch.setattr(guest_packages, "run", fail)
    with pytest.raises(UserError, match="user namespaces are not allowed"):
        guest_packages.namespace_mode()


@pytest.mark.parametrize("mode", ["root", "unshare"])
def test_a_missing_mmdebstrap_is_an_error_of_one_line(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^mmdebstrap: command not found") as caught:
        guest_packages._install([], tmp_path, tmp_path / "root.tar", mode, 0)
    assert "install_dependencies" in caught.value.hint


@pytest.mark.full
@pytest.mark.skipif(not list(DEBS.glob("*.deb")), reason="build/debs/guest has no packages: run `doit packages`")
@pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="no mmdebstrap: run `doit install_dependencies`")
def test_installing_the_packages_twice_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "one.tar", tmp_path / "two.tar"
    make_packages_layer(DEBS, first)
    old = os.umask(0o077)
    try:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
        make_packages_layer(DEBS, second)
    finally:
        os.umask(old)
    assert first.read_bytes() == second.read_bytes()
    entries = read_tar(first)
    assert not [name for name in entries if "ssh_host_" in name or name.endswith((".pyc", "dpkg.log"))]
    machine_id = entries["etc/machine-id"].content
    assert machine_id and machine_id.size == 0 and entries["usr/bin/sudo"].mode == 0o4755
    assert entries["usr/sbin/init"].kind is Kind.SYMLINK
