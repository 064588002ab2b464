# SPDX-License-Identifier: Apache-2.0
"""Makers of root file system tars for the table: whole, compressed, cut, of other machines, as systems have them."""

import bz2
import gzip
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import zstandard

from sevsnp.archives.rootfs import directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Content, Entry, Kind
from tests.support.image_contents import MIB, noted, odd, rich, root, tar_of
from tests.support.image_table import Made

# Makes an image in the directory; the second is the directory of the tools.
Maker = Callable[[Path, Path], Made]
LIGHT: dict[str, Maker] = {}


def light(case: str) -> Callable[[Maker], Maker]:
    def keep(maker: Maker) -> Maker:
        assert case not in LIGHT
        LIGHT[case] = maker
        return maker

    return keep


def _packed(pack: Callable[[bytes], bytes]) -> Maker:
    def make(place: Path, tools: Path) -> Made:
        entries = rich(place)
        tar = tar_of(entries, place / "root.tar")
        (place / "image").write_bytes(pack(tar.read_bytes()))
        return Made(str(place / "image"), entries)

    return make


for _name, _pack in (
    ("a tar with all that a careless copy loses", bytes),
    ("a tar with gzip", lambda data: gzip.compress(data, 1)),
    ("a tar with xz", lambda data: lzma.compress(data, preset=0)),
    ("a tar with zstd", lambda data: zstandard.compress(data, 1)),
    ("a tar with bzip2", lambda data: bz2.compress(data, 1)),
):
    LIGHT[_name] = _packed(_pack)


@light("a sparse tar of GNU tar's old form")
def _old_sparse(place: Path, tools: Path) -> Made:
    (place / "tree" / "srv").mkdir(parents=True)
    with (place / "tree" / "srv" / "holes").open("wb") as stream:
        stream.seek(8 * MIB)
        stream.write(b"end".ljust(4096, b"."))
    entries = root()
    rest = tar_of([entry for entry in entries if entry.name != "srv"], place / "rest.tar")
    tar = place / "root.tar"
    words = ["--format=oldgnu", "-S", "--owner=0", "--group=0", "--mode=go-w,u=rwX", "-C", str(place / "tree")]
    subprocess.run(["tar", "-cf", tar, *words, "./srv"], check=True)
    subprocess.run(["tar", "-Af", tar, rest], check=True)
    from sevsnp.archives.tar import read_tar

    holes = read_tar(tar)["srv/holes"]
    assert holes.content is not None and holes.content.sparse and holes.content.size == 8 * MIB + 4096
    mode = read_tar(tar)["srv"].mode
    return Made(str(tar), [*entries, directory_entry("srv", mode), holes])


@light("booted once")
def _booted(place: Path, tools: Path) -> Made:
    """systemd marks its seed with an attribute, and cloud-init has asked for a host name."""
    entries = root(
        *(directory_entry(name) for name in ("var/lib", "var/lib/systemd", "etc/ssh", "etc/cloud", "var/log")),
        noted(text_entry("var/lib/systemd/random-seed", "x" * 32), **{"user_random-seed-creditable": b"1"}),
        text_entry("etc/ssh/ssh_host_ed25519_key", "secret", 0o600),
        text_entry("etc/ssh/ssh_host_ed25519_key.pub", "public"),
        text_entry("etc/cloud/cloud.cfg", ""),
        text_entry("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        text_entry("etc/shadow", "root:$y$hash:1::::::\n", 0o640),
        text_entry("var/log/wtmp", "x"),
        text_entry("var/log/syslog", "x"),
    )
    return Made(str(tar_of(entries, place / "root.tar")), entries)


@light("layers of docker, and attributes that no image keeps")
def _attributes(place: Path, tools: Path) -> Made:
    entries = root(
        noted(directory_entry("srv/upper"), trusted_overlay_opaque=b"y"),
        noted(text_entry("srv/download", "x"), user_xdg_origin_url=b"https://a.example/x"),
        noted(text_entry("srv/signed", "x"), security_ima=b"\x01\x02", security_evm=b"\x03"),
        noted(text_entry("srv/labelled", "x"), security_selinux=b"system_u:object_r:usr_t:s0\0"),
        noted(text_entry("srv/packed", "x"), btrfs_compression=b"zstd"),
        noted(text_entry("srv/core", "x"), user_coredump=b"x" * 5000),
    )
    return Made(str(tar_of(entries, place / "root.tar")), entries)


@light("secrets, their other names, and caches whose files are linked")
def _secrets(place: Path, tools: Path) -> Made:
    key = Content.literal("key", b"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    cached = Content.literal("cached", b"a wheel\n")
    entries = root(
        *(directory_entry(name) for name in ("root", "root/.ssh", "root/.cache", "root/.cache/pip", "opt")),
        *(directory_entry(name) for name in ("root/.cache/huggingface", "core", "etc/ssl", "etc/ssl/private")),
        Entry("root/.ssh/id_ed25519", Kind.FILE, 0o600, content=key),
        Entry("opt/copy", Kind.FILE, 0o600, content=key),
        Entry("root/.cache/pip/wheel", Kind.FILE, 0o644, content=cached),
        Entry("opt/wheel", Kind.FILE, 0o644, content=cached),
        text_entry("root/.cache/huggingface/weights", "model"),
        text_entry("core/data", "a directory of this name is no dump"),
        text_entry("etc/ssl/private/site.key", "secret", 0o600),
    )
    return Made(str(tar_of(entries, place / "root.tar")), entries)


@light("a name that is no UTF-8 and longer than a header's field")
def _bad_name(place: Path, tools: Path) -> Made:
    entries = root(text_entry("srv/" + "x" * 120 + "\udce9", ""))
    plain = tar_of(entries, place / "plain.tar")
    with (
        tarfile.open(plain, errors="surrogateescape") as source,
        tarfile.open(place / "root.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as gnu,
    ):
        for each in source:
            gnu.addfile(each, source.extractfile(each))
    assert b"././@LongLink" in (place / "root.tar").read_bytes()
    return Made(str(place / "root.tar"), entries)


@light("a root with a prefix")
def _prefixed(place: Path, tools: Path) -> Made:
    entries = [replace(entry, name=f"t/{entry.name}") for entry in root(link_entry("sbin", "usr/sbin"))]
    return Made(str(tar_of([directory_entry("t"), *entries], place / "root.tar")), [])


@light("a root with a prefix, compressed")
def _prefixed_packed(place: Path, tools: Path) -> Made:
    plain = Path(_prefixed(place, tools).image)
    (place / "my root.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    return Made(str(place / "my root.tar.gz"), [])


def _elf(machine: int) -> bytes:
    return b"\x7fELF\2\1\1" + bytes(9) + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(44)


@light("another architecture")
def _arm(place: Path, tools: Path) -> Made:
    program = Entry("usr/sbin/init", Kind.FILE, 0o755, content=Content.literal("init", _elf(183)))
    return Made(str(tar_of(root(program), place / "root.tar")), [])


@light("another architecture, compressed")
def _arm_packed(place: Path, tools: Path) -> Made:
    plain = Path(_arm(place, tools).image)
    (place / "arm.tar.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    return Made(str(place / "arm.tar.zst"), [])


@light("a tar without an init")
def _no_init(place: Path, tools: Path) -> Made:
    entries = [entry for entry in root() if entry.name != "usr/sbin/init"]
    return Made(str(tar_of(entries, place / "root.tar")), [])


@light("a compressed file that is no root")
def _packed_text(place: Path, tools: Path) -> Made:
    (place / "backup.gz").write_bytes(gzip.compress(b"-- a database\n" * 100))
    return Made(str(place / "backup.gz"), [])


@light("half a tar")
def _half_tar(place: Path, tools: Path) -> Made:
    tar = tar_of(root(*odd()), place / "root.tar")
    os.truncate(tar, tar.stat().st_size // 2)
    return Made(str(tar), [])


@light("a whole compressed file with half a tar in it")
def _half_packed(place: Path, tools: Path) -> Made:
    half = Path(_half_tar(place, tools).image)
    (place / "root.tar.gz").write_bytes(gzip.compress(half.read_bytes()))
    return Made(str(place / "root.tar.gz"), [])


@light("half a compressed tar")
def _cut_packed(place: Path, tools: Path) -> Made:
    data = lzma.compress(tar_of(root(*odd()), place / "root.tar").read_bytes())
    (place / "root.tar.xz").write_bytes(data[: len(data) // 2])
    return Made(str(place / "root.tar.xz"), [])
