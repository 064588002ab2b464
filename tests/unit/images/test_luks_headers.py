# SPDX-License-Identifier: Apache-2.0
"""Headers that differ from the measured one: for each change, the guest stops before it reads the header's content.

The control is the guest's own code without its comparison: the same headers pass. That they are obeyed then is
shown with cryptsetup itself in tests/pipeline/test_luks_obeyed.py, and here where :func:`opens` can tell.
"""

import base64
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf import argon2

from sevsnp.errors import UserError
from sevsnp.images import luks2
from sevsnp.images.luks2 import Luks2, check_ours, opens
from tests.support.evidence import ROOT
from tests.support.key_guest import guest_module
from tests.support.luks_mutations import HOST_KEY, KEYS, MUTATIONS, OBEYED
from tests.support.luks_volume import COPY, SIZE, Volume, metadata_of, synthetic, with_metadata
from tests.support.replacing import replaced_once
from tests.support.waiting import NET

linux, luks_root = guest_module("linux"), guest_module("luks_root")
COMPARISON = "if digest.hexdigest() != wanted:"
CopyHeader = Callable[[str, int, str, str], bytes]
# Of a processor, several times what our own header costs, with all that is loaded for it.
CPU_SECONDS = 3


def without_comparison() -> CopyHeader:
    """The guest's code, whose comparison never finds a difference."""
    source = replaced_once((ROOT / "initramfs" / "luks_root.py").read_text(), COMPARISON, "if False:")
    module = types.ModuleType("luks_root_unchecked")
    exec(compile(source, "luks_root_unchecked", "exec"), module.__dict__)
    found: CopyHeader = module.copy_header
    return found


UNCHECKED = without_comparison()


@pytest.fixture(scope="module")
def volume() -> Volume:
    return synthetic()


@pytest.fixture(scope="module")
def wanted(volume: Volume) -> str:
    return hashlib.sha256(volume.header).hexdigest()


def disk(directory: Path, header: bytes) -> str:
    """A disk that begins with ``header``, and has some data."""
    path = directory / "disk"
    path.write_bytes(header + b"data" * 1024)
    return str(path)


def test_the_measured_header_is_copied(volume: Volume, wanted: str, tmp_path: Path) -> None:
    """Control for all refusals: the unchanged header, with the key that opens it."""
    target = tmp_path / "header"
    assert luks_root.copy_header(disk(tmp_path, volume.header), SIZE, wanted, str(target)).hex() == wanted
    assert target.read_bytes() == volume.header and target.stat().st_mode & 0o777 == 0o600
    assert opens(volume.header, volume.key) and not opens(volume.header, HOST_KEY)


def test_there_are_at_least_60_different_mutations(volume: Volume) -> None:
    made = [change(volume) for change in MUTATIONS.values()]
    assert len(set(made)) == len(made) >= 60
    assert all(len(header) == SIZE and header != volume.header for header in made)
    assert MUTATIONS.keys() >= OBEYED.keys() and len(OBEYED) >= 30


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_header_is_refused(volume: Volume, wanted: str, tmp_path: Path, name: str) -> None:
    mutated = MUTATIONS[name](volume)
    device, target = disk(tmp_path, mutated), tmp_path / "header"
    with pytest.raises(linux.Stop, match=wanted) as stopped:
        luks_root.copy_header(device, SIZE, wanted, str(target))
    assert hashlib.sha256(mutated).hexdigest() in str(stopped.value)
    assert not target.exists()
    # Control: it is the comparison that stops it, and nothing else in the guest.
    UNCHECKED(device, SIZE, wanted, str(target))
    assert target.read_bytes() == mutated


# Mutations that decide what becomes of the data, or who has the key; a comparison of the keyslot alone, or a look at
# whether the owner's key still opens the volume, would see nothing.
OPENED = (
    "null data cipher",
    "null data cipher, no integrity",
    "integrity removed",
    "integrity none",
    "integrity crc32c",
    "integrity sha1",
    "sector size 512",
    "segment moved by a sector",
    "segment of a fixed size",
    "segment not encrypted",
    "second segment, not encrypted",
    "keyslot area moved",
    "derivation of a single round",
    "second keyslot, the host's",
    "token of a keyring",
    "flag: no journal",
    "flag: discards",
    "requirement: re-encryption",
    "second copy newer",
    "other UUID",
    "another volume's",
)


@pytest.mark.parametrize("name", OPENED)
def test_the_key_of_the_owner_still_opens_some_mutated_headers(volume: Volume, name: str) -> None:
    assert opens(MUTATIONS[name](volume), volume.key)


@pytest.mark.parametrize("name", sorted(KEYS.keys() - {"null keyslot cipher, any key opens"}))
def test_the_key_of_the_host_opens_the_headers_that_the_host_made(volume: Volume, name: str) -> None:
    assert opens(MUTATIONS[name](volume), HOST_KEY)


def test_the_two_copies_of_a_mutated_header_differ(volume: Volume) -> None:
    mutated = MUTATIONS["second copy newer"](volume)
    assert metadata_of(mutated)["segments"]["0"]["encryption"] == "aes-xts-random"
    assert metadata_of(mutated, COPY)["segments"]["0"]["encryption"] == "cipher_null-ecb"


HUGE = ("derivation of two thousand million rounds", "digest of many rounds", "derivation without end")
OPENS = """
import resource, sys
from pathlib import Path

from sevsnp.images import luks2
from sevsnp.images.luks2 import opens

luks2._ROUNDS = luks2._PASSES = range(1, 1 << 31)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]), 600))
print(opens(Path(sys.argv[1]).read_bytes(), sys.argv[2].encode()))
"""


@pytest.mark.parametrize("name", [HUGE[0], *(pytest.param(name, marks=pytest.mark.full) for name in HUGE[1:])])
def test_control_a_header_with_a_huge_cost_exceeds_the_time_limit(volume: Volume, tmp_path: Path, name: str) -> None:
    """Control: a program that obeys this header does not finish in time; the guest refuses it after one digest.

    The program is the owner's tool without its bounds.
    """

    def end(header: bytes) -> tuple[int, str]:
        (tmp_path / "header").write_bytes(header)
        words = [sys.executable, "-c", OPENS, str(tmp_path / "header"), volume.key.decode(), str(CPU_SECONDS)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert end(volume.header) == (0, "True\n")
    assert end(MUTATIONS[name](volume)) == (-signal.SIGXCPU, "")


ARGON2 = {"type": "argon2id", "time": 4, "memory": 1024, "cpus": 1, "salt": base64.b64encode(bytes(32)).decode()}
# Fields of the header with a number that bounds what its reader does: a base, the field, and a number too many. In a
# float of JSON, 1e999 is infinite.
ENDLESS = [
    ("keyslots/0/kdf", None, "iterations", 10_000_000),
    ("digests/0", None, "iterations", 10_000_000),
    ("keyslots/0/kdf", ARGON2, "time", 16),
    ("keyslots/0/kdf", ARGON2, "memory", 1 << 20),
    ("keyslots/0/kdf", ARGON2, "cpus", 16),
]


@pytest.mark.parametrize(("place", "kdf", "name", "most"), ENDLESS, ids=[f"{row[0]}/{row[2]}" for row in ENDLESS])
def test_the_tools_of_the_owner_refuse_a_derivation_without_end_before_it_begins(
    volume: Volume, place: str, kdf: dict[str, object] | None, name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls that derive get small numbers, so that a missing bound fails here and does not hang."""
    derived: list[str] = []

    def derive(kind: str) -> bytes:
        derived.append(kind)
        return bytes(64)

    monkeypatch.setattr(luks2, "_decrypt", lambda key, data: data)
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", lambda *_: derive("pbkdf2"))
    monkeypatch.setattr(argon2, "Argon2id", lambda **_: types.SimpleNamespace(derive=lambda _: derive("argon2id")))

    def changed(value: object) -> bytes:
        metadata = volume.metadata
        if kdf:
            metadata["keyslots"]["0"]["kdf"] = dict(kdf)
        section, number, *rest = place.split("/")
        target = metadata[section][number]
        (target[rest[0]] if rest else target)[name] = value
        return with_metadata(volume.header, metadata)

    kinds = {"argon2id" if kdf else "pbkdf2"} | ({"pbkdf2"} if place.startswith("digests") else set())
    for value in (0, -1, most + 1, (1 << 31) - 1, 10**30, 1e999, 4.0, "4", None):
        derived.clear()
        for judge in (lambda header: check_ours(Luks2.parse(header)), lambda header: opens(header, volume.key)):
            with pytest.raises(
                UserError, match=rf"not made by this project: .*{name}: found .*expected a number from 1"
            ):
                judge(changed(value))
        assert len(derived) == (1 if place.startswith("digests") else 0), value
    # Control: the greatest allowed number.
    derived.clear()
    check_ours(Luks2.parse(changed(most)))
    opens(changed(most), volume.key)
    assert set(derived) >= kinds


@pytest.mark.parametrize(
    ("place", "value"),
    [("keyslots/0/area/key_size", 1 << 30), ("digests/0/digest", base64.b64encode(bytes(4096)).decode())],
)
def test_what_a_header_asks_to_derive_is_as_long_as_a_key(volume: Volume, place: str, value: object) -> None:
    """Each 32 bytes more cost all the rounds again."""
    metadata = volume.metadata
    *path, name = place.split("/")
    target = metadata
    for part in path:
        target = target[part]
    target[name] = value
    with pytest.raises(UserError, match=r"not made by this project: .*expected a number from 1 to 64"):
        opens(with_metadata(volume.header, metadata), volume.key)
    assert opens(with_metadata(volume.header, volume.metadata), volume.key)  # control: with the JSON as it was


# Every structure of the header, and what is between them.
PLACES = (range(512), range(4096, 5120), range(COPY, COPY + 512), range(COPY + 4096, COPY + 5120), range(32768, 33024))


def flips(count: int) -> list[int]:
    """Bits of the header, ``count`` of each structure and as many anywhere."""
    chosen = random.Random(1)
    found = [8 * place + chosen.randrange(8) for part in PLACES for place in chosen.sample(part, min(count, len(part)))]
    return found + [chosen.randrange(8 * SIZE) for _ in range(count)]


@pytest.mark.parametrize("count", [20, pytest.param(1024, marks=pytest.mark.full)])
def test_any_flipped_bit_is_refused(volume: Volume, wanted: str, tmp_path: Path, count: int) -> None:
    device, target = disk(tmp_path, volume.header), tmp_path / "header"
    with open(device, "r+b", buffering=0) as stream:
        for bit in flips(count):
            byte = volume.header[bit // 8]
            os.pwrite(stream.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
            with pytest.raises(linux.Stop):
                luks_root.copy_header(device, SIZE, wanted, str(target))
            os.pwrite(stream.fileno(), bytes([byte]), bit // 8)
    luks_root.copy_header(device, SIZE, wanted, str(target))  # control: with every bit as it was


@pytest.mark.parametrize("size", [0, 1, 4096, COPY, SIZE - 1])
def test_a_disk_that_ends_in_its_header_is_refused(volume: Volume, wanted: str, tmp_path: Path, size: int) -> None:
    path = tmp_path / "short"
    path.write_bytes(volume.header[:size])
    with pytest.raises(linux.Stop):
        luks_root.copy_header(str(path), SIZE, wanted, str(tmp_path / "header"))


@pytest.mark.parametrize("size", [4096, COPY, SIZE - 4096, SIZE + 4096])
def test_a_header_of_another_length_is_refused(volume: Volume, wanted: str, tmp_path: Path, size: int) -> None:
    """The length is measured together with the digest, so a host cannot change one of them alone."""
    with pytest.raises(linux.Stop):
        luks_root.copy_header(disk(tmp_path, volume.header), size, wanted, str(tmp_path / "header"))


@contextlib.contextmanager
def device(path: Path, *answers: bytes) -> Iterator[str]:
    """A device that answers each reading of it with the next of ``answers``."""

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), path.open("wb") as stream:
            stream.write(b"".join(answers))

    os.mkfifo(path)
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield str(path)
    thread.join(NET)
    path.unlink()
    assert not thread.is_alive()


def test_the_header_that_was_compared_is_the_one_that_is_used(volume: Volume, wanted: str, tmp_path: Path) -> None:
    """The disk here answers differently at the second read; the guest reads it once only."""
    mutated, target = MUTATIONS["null data cipher"](volume), tmp_path / "header"
    with device(tmp_path / "device", volume.header, mutated) as path:
        luks_root.copy_header(path, SIZE, wanted, str(target))
    assert target.read_bytes() == volume.header
    # Control: the second answer is there for who asks for it.
    with device(tmp_path / "device", volume.header, mutated) as path, open(path, "rb") as stream:
        assert [stream.read(SIZE), stream.read(SIZE)] == [volume.header, mutated]


def test_an_existing_header_file_is_not_overwritten(volume: Volume, wanted: str, tmp_path: Path) -> None:
    target = tmp_path / "header"
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        luks_root.copy_header(disk(tmp_path, volume.header), SIZE, wanted, str(target))
    assert not (tmp_path / "elsewhere").exists()


# What may differ in a header that is adopted: nothing of it decides how the data are protected.
HARMLESS = {
    "label", "other UUID", "another volume's", "JSON: the same, spaced", "other salt", "subsystem", "newer",
    "older number",
    "a bit after the keyslots", "derivation of a single round", "derivation of fewer rounds", "digest of fewer rounds",
    "copy's offset",
}  # fmt: skip


def adopts(header: bytes, key: bytes) -> bool:
    """As adopt_luks judges a disk that a host has had."""
    try:
        luks = Luks2.parse(header)
        check_ours(luks)
        return opens(header, key)
    except UserError:
        return False


@pytest.mark.parametrize("name", [*OBEYED, "older, before the key was changed", "copy's offset"])
def test_only_headers_with_the_same_protection_of_the_data_are_adopted(name: str, volume: Volume) -> None:
    changed = MUTATIONS[name](volume)
    assert changed != volume.header and adopts(changed, volume.key) == (name in HARMLESS)


def test_control_the_own_header_of_the_volume_is_adopted(volume: Volume) -> None:
    assert adopts(volume.header, volume.key) and not adopts(volume.header, b"another key")
