# SPDX-License-Identifier: Apache-2.0
"""The guest's handling of an encrypted disk before and after opening it: its header, its generation, its host key."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.key_guest import guest_module

luks_root, linux = guest_module("luks_root"), guest_module("linux")
HEADER = bytes(range(256)) * 64
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
PLACE = "var/lib/openend2e-sevsnp"


def copied(disk: Path, target: Path, wanted: str = hashlib.sha256(HEADER).hexdigest()) -> bytes:
    found: bytes = luks_root.copy_header(str(disk), len(HEADER), wanted, str(target))
    return found


def test_the_header_is_copied_and_its_digest_printed(tmp_path: Path) -> None:
    disk, target = tmp_path / "disk", tmp_path / "header"
    disk.write_bytes(HEADER + b"the rest of the disk")
    assert copied(disk, target) == hashlib.sha256(HEADER).digest()
    assert target.read_bytes() == HEADER
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", [0, 1, 5000, len(HEADER) - 1])
def test_a_header_with_one_other_bit_is_refused(tmp_path: Path, place: int) -> None:
    disk, target = tmp_path / "disk", tmp_path / "header"
    other = bytearray(HEADER)
    other[place] ^= 0x10
    disk.write_bytes(other)
    with pytest.raises(linux.Stop, match="LUKS header has the SHA-256"):
        copied(disk, target)
    assert not target.exists()


@pytest.mark.parametrize("size", [0, 1, len(HEADER) - 1])
def test_a_disk_that_ends_within_the_header_is_refused(tmp_path: Path, size: int) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(HEADER[:size])
    with pytest.raises(linux.Stop, match="LUKS header has the SHA-256"):
        copied(disk, tmp_path / "header")


def test_the_disk_is_read_once(tmp_path: Path) -> None:
    """A pipe gives its bytes once: the hashed bytes are the stored bytes, whatever a second read would give."""
    pipe, target = tmp_path / "pipe", tmp_path / "header"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"cat > {pipe}"], stdin=subprocess.PIPE) as writer:
        assert writer.stdin
        writer.stdin.write(HEADER)
        writer.stdin.close()
        copied(pipe, target)
    assert target.read_bytes() == HEADER


def generation(root: Path) -> Path:
    return root / PLACE / "generation"


def test_boots_are_counted(tmp_path: Path) -> None:
    assert [luks_root.count_boot(str(tmp_path), least) for least in (0, 0, 2, 1)] == [1, 2, 3, 4]
    assert generation(tmp_path).read_text() == "4"
    assert generation(tmp_path).stat().st_mode & 0o777 == 0o600
    assert os.listdir(generation(tmp_path).parent) == ["generation"]


def test_an_older_disk_is_refused_and_not_changed(tmp_path: Path) -> None:
    luks_root.count_boot(str(tmp_path), 0)
    with pytest.raises(linux.Stop, match="its generation is 1, the owner's record says 2"):
        luks_root.count_boot(str(tmp_path), 2)
    assert generation(tmp_path).read_text() == "1"
    with pytest.raises(linux.Stop, match="its generation is 0, the owner's record says 1"):
        luks_root.count_boot(str(tmp_path / PLACE), 1)
    assert luks_root.count_boot(str(tmp_path), 1) == 2  # control


def test_the_file_of_an_interrupted_boot_is_overwritten(tmp_path: Path) -> None:
    luks_root.count_boot(str(tmp_path), 0)
    generation(tmp_path).with_name("generation.new").write_text("17, and more than will be written")
    assert luks_root.count_boot(str(tmp_path), 1) == 2
    assert generation(tmp_path).read_text() == "2"


@pytest.mark.parametrize("text", ["", "-1", "1\n", "one", "0x1", "1" * 70, str(1 << 63)])
def test_a_generation_that_is_not_a_number_is_refused(tmp_path: Path, text: str) -> None:
    luks_root.count_boot(str(tmp_path), 0)
    generation(tmp_path).write_text(text)
    with pytest.raises(linux.Stop, match="generation is"):
        luks_root.count_boot(str(tmp_path), 0)


@pytest.mark.parametrize("link", ["var", "var/lib", PLACE])
def test_a_link_in_the_path_of_the_generation_is_refused(tmp_path: Path, link: str) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(elsewhere)
    with pytest.raises(linux.Stop, match="in the root"):
        luks_root.count_boot(str(root), 0)
    assert list(elsewhere.iterdir()) == []
    (root / link).unlink()
    assert luks_root.count_boot(str(root), 0) == 1  # control


def test_a_link_for_the_generation_is_refused(tmp_path: Path) -> None:
    luks_root.count_boot(str(tmp_path), 0)
    outside = tmp_path / "outside"
    outside.write_text("41")
    generation(tmp_path).unlink()
    generation(tmp_path).symlink_to(outside)
    with pytest.raises(OSError, match="symbolic link"):
        luks_root.count_boot(str(tmp_path), 0)
    assert outside.read_text() == "41"


def host_key(root: Path) -> str:
    root.mkdir(exist_ok=True)
    found: str = luks_root.host_key(str(root), HOST_KEY)
    return found


def test_the_host_key_is_made_once_and_kept(tmp_path: Path) -> None:
    first = host_key(tmp_path)
    assert first.startswith("ssh-ed25519 AAAA") and len(first.split()) == 2
    assert host_key(tmp_path) == first
    assert (tmp_path / HOST_KEY).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / f"{HOST_KEY}.pub").read_text().split()[:2] == first.split()


def test_a_link_in_the_host_key_s_place_is_replaced(tmp_path: Path) -> None:
    """The file that the link names is neither used nor changed."""
    known = tmp_path / "known"
    known_key = host_key(known)
    root = tmp_path / "root"
    (root / HOST_KEY).parent.mkdir(parents=True)
    (root / HOST_KEY).symlink_to(known / HOST_KEY)
    before = (known / HOST_KEY).read_bytes()
    assert host_key(root) != known_key
    assert not (root / HOST_KEY).is_symlink() and (known / HOST_KEY).read_bytes() == before


def test_a_link_on_the_way_to_the_host_key_is_refused(tmp_path: Path) -> None:
    host_key(tmp_path / "known")
    root = tmp_path / "root"
    root.mkdir()
    (root / "etc").symlink_to(tmp_path / "known" / "etc")
    with pytest.raises(linux.Stop, match="etc"):
        host_key(root)


def test_a_host_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / HOST_KEY
    path.parent.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", path], check=True)
    with pytest.raises(linux.Stop, match="no Ed25519 key"):
        host_key(tmp_path)
