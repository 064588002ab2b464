# SPDX-License-Identifier: Apache-2.0
"""Extended attributes from a tar to ext4 and erofs: which are kept, which are dropped, and the message about those."""

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import EPOCH, directory_entry, filtered, link_entry, text_entry
from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.archives.tar_writer import write_tar
from sevsnp.images.attributes import AttributeFilter
from sevsnp.images.bootable import bootable_entries
from sevsnp.images.filesystem import make_erofs, make_ext4
from sevsnp.images.identity import ImageKind

PROJECT = Path(__file__).resolve().parents[3]
LIST = PROJECT / "guest-vm/denied.yaml"
# POSIX.1e as the kernel has it: version 2, then tag, permissions and number of each entry.
ANY = 0xFFFFFFFF
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *each) for each in ((1, 6, ANY), (2, 4, 1000), (4, 4, ANY), (0x10, 4, ANY), (0x20, 4, ANY))
)
VALUES = (
    ("security.ima", b"\x01\x02\xff\0\n=x"),
    ("system.posix_acl_access", ACL),
    ("trusted.overlay.opaque", b"y"),
    ("user.large", b"b" * 2000),
    ("user.xdg.origin.url", "https://a.example/é".encode()),
)


def with_values(entry: Entry, *values: tuple[str, bytes]) -> Entry:
    return replace(entry, attributes=tuple(name for name, _ in values), values=values)


def tree() -> list[Entry]:
    content = Content.literal("two", b"two names\n")
    return [
        directory_entry(""),
        directory_entry("d"),
        with_values(directory_entry("d/upper"), VALUES[2]),
        with_values(text_entry('odd "name" é\udce9', "x"), *VALUES),
        with_values(Entry("one", Kind.FILE, 0o644, content=content, mtime=EPOCH), VALUES[4]),
        with_values(Entry("two", Kind.FILE, 0o644, content=content, mtime=EPOCH), VALUES[4]),
    ]


def test_attributes_that_no_target_can_keep_are_dropped_by_name() -> None:
    clean = AttributeFilter()
    entries = [
        with_values(text_entry("a", ""), ("btrfs.compression", b"zstd"), ("security.evm", b"1"), ("user.kept", b"1")),
        replace(text_entry("b", ""), attributes=("acl.access",)),
        replace(text_entry("c", ""), attributes=("acl.access",)),
        with_values(text_entry("d", ""), ("user.core", b"x" * 3000), ("user.more", b"x" * 900)),
        with_values(text_entry("two\nlines", ""), ("user.x", b"1")),
    ]
    kept = {entry.name: entry for entry in filtered(entries, [clean])}
    assert {name: dict(entry.values) for name, entry in kept.items() if entry.values} == {
        "a": {"user.kept": b"1"}, "d": {"user.core": b"x" * 3000},
    }  # fmt: skip
    assert all(entry.attributes == tuple(name for name, _ in entry.values) for entry in kept.values())
    assert clean.lines() == [
        "dropped attribute acl.access (the archive does not have it in the kernel's form): /b and 1 more",
        "dropped attribute btrfs.compression (no attribute of ext4 or erofs): /a",
        "dropped attribute security.evm (it is valid for one inode only): /a",
        "dropped attribute user.more (too large): /d",
        "dropped attribute user.x (the file's name has a line end): /two\nlines",
    ]


@pytest.mark.parametrize("kind", ImageKind)
def test_attributes_of_removed_files_are_not_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: ImageKind
) -> None:
    """In an image that was booted once, systemd's seed has an attribute; the deny-list removes that file."""
    seed = with_values(text_entry("var/lib/systemd/random-seed", "x"), ("user.random-seed-creditable", b"1"))
    layer = with_values(directory_entry("var/lib/docker/overlay2/a/diff/app"), VALUES[2])
    write_tar([text_entry("sbin/init", "", 0o755), seed, layer], tmp_path / "a.tar", epoch=EPOCH)
    found = {entry.name: entry for entry in bootable_entries(tmp_path / "a.tar", kind, LIST)}
    assert seed.name not in found and found[layer.name].values == (VALUES[2],)
    said = capsys.readouterr().out
    assert "removed random seed: /var/lib/systemd/random-seed" in said and "attribute" not in said


def shown(tools: Path, image: Path, entries: Sequence[Entry]) -> dict[str, str]:
    """What debugfs says of each entry's attributes."""
    found = {}
    for number, entry in enumerate(entries):
        script = image.with_name(f"{number}.debugfs")
        quoted = '"/' + entry.name.replace('"', '""') + '"'
        script.write_bytes(f"ea_list {quoted}\n".encode("utf-8", "surrogateescape"))
        words = [str(tools / "debugfs"), "-f", str(script), str(image)]
        found[entry.name] = subprocess.run(words, capture_output=True, check=True).stdout.decode(errors="replace")
    return found


def test_ext4_and_erofs_keep_attributes_and_are_reproducible(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second image is named by a path from the present directory, as tasks do it."""
    entries = [*tree(), link_entry("s", "one")]
    tar = tmp_path / "a.tar"
    write_tar(entries, tar, epoch=EPOCH)
    make_ext4(tar, tmp_path / "a.ext4", tools=tools, entries=entries)
    monkeypatch.chdir(tmp_path)
    make_ext4(Path("a.tar"), Path("b.ext4"), tools=tools, entries=entries)
    assert (tmp_path / "a.ext4").read_bytes() == (tmp_path / "b.ext4").read_bytes()
    found = shown(tools, tmp_path / "a.ext4", entries)
    for entry in entries:
        assert all(name in found[entry.name] for name, _ in entry.values), entry.name
    make_erofs(tar, tmp_path / "a.erofs", tools=tools)
    raw = (tmp_path / "a.erofs").read_bytes()
    assert VALUES[3][1] in raw and VALUES[4][1] in raw
    # Control: mke2fs alone takes nothing of them from the tar.
    plain = [replace(entry, values=()) for entry in entries]
    make_ext4(tar, tmp_path / "c.ext4", tools=tools, entries=plain)
    assert not any("user." in text for text in shown(tools, tmp_path / "c.ext4", entries).values())
