# SPDX-License-Identifier: Apache-2.0
"""Hints about the machine: what is missing on it, and what only root can do there.

What would change the machine that runs the tests is done beside it: with stand-ins for apt-get on PATH, in apt's own
simulation, and in copies of the files in /etc.
"""

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sevsnp.images import guest_packages
from sevsnp.packages import KEYRING, hostapt
from sevsnp.packages.deb import open_content
from sevsnp.packages.sources import ask_mmdebstrap, find_keyring, find_sources
from sevsnp.project import dependencies
from sevsnp.project.dependencies import install_dependencies
from sevsnp.project.graph import draw
from sevsnp.system import command, subordinate_ids
from tests.conftest import PROJECT
from tests.support.debian_repository import build_deb
from tests.support.table import Told, remedies

# Makes what a package has, beside itself.
APT_GET = """#!/bin/sh
case " $* " in
*" install "*) ;;
*) exit 0 ;;
esac
for word; do
    case $word in
    mmdebstrap) set mmdebstrap ;;
    openssh-client) set ssh ssh-keygen ;;
    mount) set mount ;;
    uidmap) set newuidmap newgidmap ;;
    graphviz) set dot ;;
    dpkg) set dpkg-deb ;;
    *) continue ;;
    esac
    for name; do
        # What it installs does nothing, but for what the tests need in earnest.
        [ "$name" = dpkg-deb ] && does='PATH=/usr/bin:/bin exec dpkg-deb "$@"' || does=:
        printf '#!/bin/sh\\n%s\\n' "$does" > "${0%/*}/$name" && chmod 755 "${0%/*}/$name"
    done
done
"""
# Of what a doit run needs, but not the programs that are installed.
NEEDED = ("sh", "env", "chmod", "true", "dirname", "readlink", "sha256sum", "cat", "mkdir", "rm", "mv", "flock", "id")


@pytest.fixture
def bare(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which nothing is installed, for this process and for what the user types."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name, path=os.defpath)
        assert found
        (folder / name).symlink_to(found)
    (folder / "apt-get").write_text(APT_GET)
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setattr(command, "_SBIN", ())
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    told.variables["PATH"] = str(folder)
    return folder


def install_here() -> None:
    """./doitw install_dependencies, without the directories that every process looks into."""
    install_dependencies()


@remedies("sevsnp.system.command", "run: ./doitw install_dependencies")
@remedies("sevsnp.images.guest_packages", "run: ./doitw install_dependencies")
def test_a_program_that_is_not_there(told: Told, bare: Path) -> None:
    hint = told.hint(lambda: command.run(["mmdebstrap", "--version"]))
    assert hint == told.hint(lambda: guest_packages._install([], Path(), Path(), "root", 0))
    # The task does this; with its PATH ending in sbin it would find the machine's own programs.
    assert hint.endswith("./doitw install_dependencies")
    if os.geteuid():
        (bare / "sudo").write_text('#!/bin/sh\n[ "$1" != -n ] || shift\nexec "$@"\n')
        (bare / "sudo").chmod(0o755)
    install_here()
    command.run(["mmdebstrap", "--version"])


@remedies(
    "sevsnp.project.dependencies",
    "run as root: {}",
    "install with this system's own package manager what Debian calls: {}",
)
def test_packages_to_install_by_hand(told: Told, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt_get = (bare / "apt-get").read_text()
    (bare / "apt-get").unlink()
    names = told.hint(install_here).rpartition(": ")[2].split(", ")
    assert "mmdebstrap" in names
    (bare / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    (bare / "apt-get").chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    hint = told.hint(install_here)
    (bare / "apt-get").write_text(apt_get)
    told.obey(hint)
    assert [one.package for one in dependencies.missing()] == []


def simulated(hint: str) -> str:
    """The command of a hint for root, which apt only simulates."""
    line = hint.rpartition(": ")[2]
    assert line.startswith("apt-get install ")
    return line.replace("apt-get install", "apt-get --simulate install")


@remedies("sevsnp.packages.sources", "run: apt-get install debian-archive-keyring")
def test_a_missing_keyring(told: Told, tmp_path: Path) -> None:
    if shutil.which("apt-get") is None or not KEYRING.is_file():
        pytest.skip("no apt, or no keys of Debian's here")
    hint = told.hint(lambda: find_keyring(tmp_path / "absent.gpg"))
    done = told.shell(simulated(hint))
    assert done.returncode == 0, done.stdout
    owner = subprocess.run(["dpkg", "-S", KEYRING], capture_output=True, text=True, check=False, timeout=60)
    assert owner.stdout.startswith("debian-archive-keyring:")
    find_keyring()


@remedies("sevsnp.system.subordinate_ids", "run as root: usermod --add-subuids {} --add-subgids {} {}")
def test_no_subordinate_ids(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() or shutil.which("usermod") is None:
        pytest.skip("only root may give subordinate ids")
    etc = tmp_path / "root" / "etc"
    etc.mkdir(parents=True)
    for name in ("passwd", "shadow", "group", "gshadow", "login.defs"):
        if Path("/etc", name).is_file():
            shutil.copy2(Path("/etc", name), etc)
    for name in ("subuid", "subgid"):
        (etc / name).write_text("somebody:100000:65536\n")
    monkeypatch.setattr(subordinate_ids, "FILES", (etc / "subuid", etc / "subgid"))
    hint = told.hint(lambda: subordinate_ids.check_subordinate_ids(1000))
    told.obey(hint.replace("usermod", f"usermod --prefix '{tmp_path / 'root'}'"))
    subordinate_ids.check_subordinate_ids(1000)
    assert "somebody:100000:65536\n" in (etc / "subuid").read_text()
    assert "165536:65536" in (etc / "subgid").read_text()  # not somebody's


@remedies("sevsnp.packages.hostapt", "install apt: its configuration says where packages come from")
@remedies("sevsnp.packages.sources", "run: apt-get install mmdebstrap, or set MIRROR")
def test_a_machine_without_package_sources(told: Told, bare: Path) -> None:
    def install() -> None:
        (bare / "apt-config").write_text("#!/bin/sh\necho 'Dir \"/\";'\n")
        (bare / "apt-config").chmod(0o755)

    told.mended(hostapt.configuration, install)
    install_or_set = told.hint(lambda: ask_mmdebstrap("trixie"))
    told.obey(install_or_set.partition(", or ")[0])
    assert (bare / "mmdebstrap").exists()
    assert find_sources("http://127.0.0.1:9/debian").main == "http://127.0.0.1:9/debian"


@remedies("sevsnp.project.graph", "run as root: apt-get install graphviz")
@remedies("sevsnp.packages.deb", "run: apt-get install dpkg")
def test_tools_that_fail(told: Told, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "dot").write_text("#!/bin/sh\nexit 1\n")
    (bare / "dot").chmod(0o755)
    monkeypatch.chdir(PROJECT)
    told.mends(lambda: draw(tmp_path / "pipeline.svg"))
    deb = build_deb(tmp_path, "x", content={"usr/file": "x"})

    def read() -> None:
        with open_content(deb) as tar:
            assert tar.getnames()

    told.mends(read)


# Becomes root in a namespace only where the kernel's setting allows it.
MMDEBSTRAP = """#!/bin/sh
read -r allowed < '{setting}' && [ "$allowed" = 1 ]
"""
SYSCTL = """#!/bin/sh
[ "$1" = -w ] && name=${{2%%=*}} && [ "$name" = kernel.unprivileged_userns_clone ] && echo "${{2#*=}}" > '{setting}'
"""


@remedies(
    "sevsnp.images.guest_packages",
    "run as root: apt-get install uidmap",
    "run this task as root, or allow them, as root: sysctl -w {}",
    "run this task as root",
)
def test_no_user_namespaces(told: Told, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "sys" / "kernel" / "unprivileged_userns_clone"
    setting.parent.mkdir(parents=True)
    monkeypatch.setattr(guest_packages, "_SYSCTL", tmp_path / "sys")
    ids = tmp_path / "subuid"
    ids.write_text("54321:100000:65536\n")
    monkeypatch.setattr(subordinate_ids, "FILES", (ids,))
    for name, text in (("mmdebstrap", MMDEBSTRAP), ("sysctl", SYSCTL)):
        (bare / name).write_text(text.format(setting=setting))
        (bare / name).chmod(0o755)
    namespace_mode = guest_packages.namespace_mode
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 54321)
        setting.write_text("0\n")
        told.obey(told.hint(namespace_mode))
        told.mends(namespace_mode)
        assert namespace_mode() == "unshare"
        setting.write_text("a security policy forbids it\n")
        told.hint(namespace_mode)
    if os.geteuid() == 0:
        assert namespace_mode() == "root"
