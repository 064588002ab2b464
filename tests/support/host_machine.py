# SPDX-License-Identifier: Apache-2.0
"""A machine that `prepare_host` may change: a root directory, and stand-ins on PATH for what would change a real one.

install, rm and rmdir are the real ones; apt-get, update-grub, usermod, gpasswd, udevadm and sudo work on the root
directory. update-grub reads the files as the real one does, so the command line is the shell's own result.
"""

import io
import os
import shutil
from pathlib import Path

import pytest

from sevsnp.host_setup import prepare
from sevsnp.system import command

OLD, NEW = "6.1.0-40-amd64", "6.12.43+deb12-amd64"
DEBIAN_12 = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
UBUNTU_24 = 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nID=ubuntu\nVERSION_ID="24.04"\n'
GRUB = 'GRUB_CMDLINE_LINUX="console=ttyS0"\nGRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=pt"\n'
_REAL = ("sh", "env", "install", "rm", "rmdir", "sed", "mkdir", "true", "mv", "dirname")
_STAND_INS = {
    "apt-get": """
case " $* " in
*" update "*) exit {update} ;;
*" --simulate "*)
    [ -z '{no_suite}' ] || {{ echo "E: The value 'bookworm-backports' is invalid" >&2; exit 100; }}
    for name in {new}; do
        old=
        [ ! -e {root}/dpkg/$name ] || read -r old < {root}/dpkg/$name
        [ "$old" = new ] || echo "Inst $name ${{old:+[$old] }}(new Debian:12 [amd64])"
    done ;;
*" --allow-downgrades "*)
    for word; do
        case $word in
        linux-*=*) echo "${{word#*=}}" > {root}/dpkg/${{word%%=*}} ;;
        linux-*-) rm {root}/dpkg/${{word%-}} ;;
        esac
    done
    rm -r {root}/lib/modules/{kernel} ;;
*" install "*)
    mkdir -p {root}/dpkg {root}/lib/modules/{kernel}
    for name in {new}; do echo new > {root}/dpkg/$name; done
    exit {install} ;;
esac
""",
    "update-grub": """
. {root}/etc/default/grub
for file in {root}/etc/default/grub.d/*.cfg; do [ ! -e "$file" ] || . "$file"; done
echo "$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT" > {root}/boot-cmdline
""",
    "usermod": 'for user; do :; done\nsed -i "s/^kvm:.*/&$user/" {root}/etc/group\n',
    "gpasswd": 'sed -i "/^kvm:/s/\\b$2$//" {root}/etc/group\n',
    "udevadm": "",
}
_SUDO = '#!/bin/sh\n[ "$1" != -n ] || {{ shift; {password}; }}\nFAKE_SUDO=sudo: exec "$@"\n'


class HostMachine:
    """``root`` is its root directory; ``calls`` are the commands that changed something, in their order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._bin, self._log = folder / "root", folder / "bin", folder / "calls"
        self._monkeypatch = monkeypatch
        self._bin.mkdir(parents=True)
        monkeypatch.setattr(command, "_SBIN", ())
        monkeypatch.setattr(command, "_KEPT", (*command._KEPT, "FAKE_SUDO"))
        monkeypatch.setenv("PATH", str(self._bin))
        for name in _REAL:
            found = shutil.which(name, path=os.defpath)
            assert found, name
            (self._bin / name).symlink_to(found)
        self.apt()
        self.write("etc/os-release", DEBIAN_12)
        self.write("etc/group", "root:x:0:\nkvm:x:104:\nusers:x:100:somebody\n")
        self.write("etc/default/grub", GRUB)
        self.write("etc/default/grub.d/50-own.cfg", "GRUB_TIMEOUT=1\n")
        self.write("proc/cmdline", "console=ttyS0 quiet iommu=pt\n")
        self.write("proc/sys/kernel/osrelease", f"{OLD}\n")
        self.write(f"lib/modules/{OLD}/kernel", "")
        self.user("somebody")
        self.answer(None)

    def apt(self, *, new: str = f"linux-image-{NEW} linux-image-amd64", update: int = 0, install: int = 0,
            no_suite: bool = False) -> None:  # fmt: skip
        """The stand-ins; ``new``: the packages of the kernel, ``update`` and ``install``: apt-get's exit codes."""
        values = {
            "root": self.root, "new": new, "kernel": NEW, "update": update, "install": install,
            "no_suite": "yes" if no_suite else "",
        }  # fmt: skip
        for name, body in _STAND_INS.items():
            self.add(name, f'#!/bin/sh\necho "${{FAKE_SUDO}}{name} $*" >> {self._log}\n{body.format(**values)}')

    def add(self, name: str, text: str) -> None:
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def remove(self, name: str) -> None:
        (self._bin / name).unlink()

    def user(self, name: str) -> None:
        """root, whom ``name`` became through sudo; see :meth:`ordinary` for a user without root's rights."""
        self._monkeypatch.setattr(os, "geteuid", lambda: 0)
        self._monkeypatch.setenv("SUDO_USER", name)

    def ordinary(self, *, sudo: str | None) -> None:
        """An ordinary user; ``sudo``: what sudo -n does (``:`` works, ``exit 1`` wants a password), None: no sudo."""
        self._monkeypatch.setattr(os, "geteuid", lambda: 1000)
        self._monkeypatch.setattr(prepare, "_user", lambda: "somebody")
        if sudo is not None:
            self.add("sudo", _SUDO.format(password=sudo))

    def answer(self, text: str | None) -> None:
        """What is typed on the terminal; None where there is none."""
        stdin = io.StringIO(text or "")
        self._monkeypatch.setattr(stdin, "isatty", lambda: text is not None)
        self._monkeypatch.setattr("sys.stdin", stdin)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def reboot(self, kernel: str = NEW) -> None:
        """Boot a kernel that is installed, with the command line of update-grub."""
        assert (self.root / "lib/modules" / kernel).is_dir()
        self.write("proc/sys/kernel/osrelease", f"{kernel}\n")
        if (self.root / "boot-cmdline").exists():
            self.write("proc/cmdline", (self.root / "boot-cmdline").read_text())

    def calls(self) -> list[str]:
        """The commands of the stand-ins so far, without what apt-get only simulates."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line for line in lines if "--simulate" not in line]

    def content(self) -> dict[str, bytes]:
        """Every file of the root directory, except what a boot reads anew."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        names = {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}
        return {name: data for name, data in names.items() if not name.startswith(("proc/", "boot-cmdline"))}
