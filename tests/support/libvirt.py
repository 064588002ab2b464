# SPDX-License-Identifier: Apache-2.0
"""Debian's libvirt, unpacked from its pinned packages: its schema, and the QEMU command line that it makes of a domain.

No daemon runs and nothing outside the given directory is written: the driver is loaded into virsh (qemu:///embed), in
a user namespace, because as root it would look for a user of its own. This machine has no SEV-SNP, so the capabilities
that libvirt remembers of QEMU are given SEV-SNP.
"""

import os
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevsnp.packages.wrappers import LIBRARIES, LOADER
from tests.support.pinned import PinnedSet

_SECONDS = 120
_SEV = {"cbitpos": "51", "reducedPhysBits": "1", "pdh": "AAAA", "certChain": "AAAA", "cpu0Id": "AAAA", "maxGuests": "9",
        "maxESGuests": "9"}  # fmt: skip
# libvirt looks for its CPU models below /usr/share.
_NAMESPACES = """\
mount --bind "$1" /usr/share && shift && exec unshare --user --map-user=1000 --map-group=1000 -- "$@"
"""


@dataclass(frozen=True)
class Libvirt:
    """An unpacked libvirt: ``tree`` has it, ``release`` the other libraries, ``work`` all that it writes."""

    tree: Path
    release: Path
    work: Path

    def _words(self, program: str) -> list[str | Path]:
        libraries = ":".join(str(tree / LIBRARIES) for tree in (self.tree, self.release))
        loader = ["--inhibit-cache", "--library-path", libraries]
        return [self.release / LOADER, *loader, self.tree / "usr" / "bin" / program]

    def refusal(self, domain: Path) -> str:
        """What libvirt's schema says against a domain XML; empty if it is valid."""
        schema = self.tree / "usr/share/libvirt/schemas/domain.rng"
        words = [*self._words("xmllint"), "--noout", "--nonet", "--relaxng", schema, domain]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
        return done.stderr if done.returncode else ""

    def native(self, domain: Path, qemu: Path) -> list[str]:
        """QEMU's arguments for a domain, as libvirt would start it with ``qemu``. Its refusal is an AssertionError.

        Its network card is left out: for this question libvirt replaces it by a device that needs privileges.
        """
        root = ElementTree.parse(domain).getroot()
        devices = root.find("devices")
        assert devices is not None
        emulator = str(self._emulator(qemu))
        ElementTree.SubElement(devices, "emulator").text = emulator
        for card in devices.findall("interface"):
            devices.remove(card)
        question = self.work / "question.xml"
        question.write_bytes(ElementTree.tostring(root))
        if not list((self.work / "root").rglob("capabilities/*.xml")):
            self._virsh("domcapabilities", "--emulatorbin", emulator, "--virttype", "qemu")
            self._give_snp()
        words = shlex.split(self._virsh("domxml-to-native", "qemu-argv", str(question)))
        return words[words.index(emulator) + 1 :]

    def _emulator(self, qemu: Path) -> Path:
        """A program of our own that starts ``qemu``.

        libvirt drops what it knows about an emulator whose status has changed. That of the built QEMU changes whenever
        another test makes a hard link to it.
        """
        script = self.work / "qemu"
        if not script.exists():
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(qemu))} "$@"\n')
            script.chmod(0o755)
        return script

    def _virsh(self, *words: str) -> str:
        (self.work / "root" / "etc").mkdir(parents=True, exist_ok=True)
        share = self.tree / "usr" / "share"
        # On one processor: its number is part of the host's CPUID, and with another libvirt drops what it was given.
        one = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
        spaces: list[str | Path] = [*one, "unshare", "--user", "--map-root-user", "--mount", "--"]
        spaces += ["sh", "-ec", _NAMESPACES, "sh", share]
        done = subprocess.run(
            [*spaces, *self._words("virsh"), "-c", f"qemu:///embed?root={self.work}/root", *words],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.work),
                "XDG_RUNTIME_DIR": str(self.work),
                "LIBVIRT_DRIVER_DIR": str(self.tree / LIBRARIES / "libvirt" / "connection-driver"),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _give_snp(self) -> None:
        (known,) = (self.work / "root").rglob("capabilities/*.xml")
        document = ElementTree.parse(known)
        root = document.getroot()
        for position, name in enumerate(("sev-guest", "sev-snp-guest")):
            root.insert(position, ElementTree.Element("flag", name=name))
        sev = ElementTree.SubElement(root, "sev")
        for name, text in _SEV.items():
            ElementTree.SubElement(sev, name).text = text
        document.write(known)


def unpack_libvirt(release: Path, directory: Path) -> Libvirt:
    """libvirt below ``directory``, run with the libraries of the release tree: from the cache, or fetched into it."""
    tree, work = directory / "libvirt", directory / "work"
    tree.mkdir()
    work.mkdir()
    PinnedSet("libvirt").unpack(tree)
    return Libvirt(tree, release, work)


def skip_without_kvm() -> None:
    """Without it, libvirt renders no domain for KVM, and drops what it was given about QEMU."""
    for command in ("taskset", "unshare"):
        if not shutil.which(command):
            pytest.skip(f"no {command} command here")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm for this user: libvirt renders no domain for KVM")
