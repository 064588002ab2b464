# SPDX-License-Identifier: Apache-2.0
"""Makes an encrypted root from a root file system tar: a LUKS2 image with integrity, written by the appliance."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sevsnp.archives.tar import Entry
from sevsnp.errors import UserError
from sevsnp.images.bootable import bootable_entries
from sevsnp.images.filesystem import ext4_size, make_ext4, usage
from sevsnp.images.identity import Change, ImageKind
from sevsnp.images.luks2 import HEADER_SIZE, Luks2, opens
from sevsnp.images.luks_current import is_for_snp
from sevsnp.keys.luks_key import Key, Kind, Record, forget, given, make_key, read_record, write_record
from sevsnp.qemu.appliance import JOB_SECONDS, Appliance, ApplianceDisk, run_job
from sevsnp.system.time_limits import seconds_for

MIB = 1 << 20
SECTOR = 512
# The journal sizes that mke2fs uses for file systems up to each size (lib/ext2fs/mkjournal.c).
_JOURNALS = (
    (4 * MIB, 128 * MIB),
    (16 * MIB, 1 << 30),
    (32 * MIB, 2 << 30),
    (64 * MIB, 16 << 30),
    (1 << 30, 1 << 60),
)
# The kernel reserves 1/50 of every ext4, at most this (fs/ext4/super.c, ext4_calculate_resv).
_MOST_RESERVED = 16 * MIB
# dm-integrity's own defaults, which cryptsetup keeps: 16 MiB of data after each run of their tags, a journal of 1/128
# of the disk, at most 64 MiB. A tag is the HMAC (32 bytes) and the IV (16), one for every 4,096 bytes.
_AREA = 16 * MIB
_TAGS = _AREA // 4096 * 48
_SUPERBLOCK = 4096
_MOST_JOURNAL = 64 * MIB

_LAYOUT = (
    "--type=luks2",
    f"--offset={HEADER_SIZE // SECTOR}",
    "--luks2-metadata-size=16k",
    # 768 bits of key in 4,000 stripes: room for exactly one keyslot.
    "--luks2-keyslots-size=376k",
    "--cipher=aes-xts-random",
    "--key-size=512",
    "--integrity=hmac-sha256",
    # The appliance writes every sector itself, once.
    "--integrity-no-wipe",
    "--sector-size=4096",
    "--hash=sha256",
)
_DERIVATIONS: Mapping[Kind, Sequence[str]] = {
    # A key derivation does not make 256 random bits harder to guess.
    "made": ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"),
    # The derivation must be possible in a guest of 1 GiB, and under emulation.
    "given": ("--pbkdf=argon2id", "--pbkdf-force-iterations=4", "--pbkdf-memory=131072", "--pbkdf-parallel=1"),
}


def image_size(data: int) -> int:
    """The size in bytes, whole MiB, of an image whose mapping has ``data`` bytes or a little more.

    drivers/md/dm-integrity.c, calculate_device_limits: superblock, journal, and a run of tags for each started 16 MiB.
    """
    inside = _SUPERBLOCK + data + -(-data // _AREA) * _TAGS
    journal = min(-(-inside // 127), _MOST_JOURNAL)
    return -(-(inside + journal + HEADER_SIZE) // MIB) * MIB + MIB


def root_size(entries: Iterable[Entry], free: int) -> int:
    """The bytes of a file system for ``entries`` with ``free`` bytes to spare, including journal and more inodes."""
    size = ext4_size(usage(entries), spare=free + free // 64)
    size += next(journal for journal, most in _JOURNALS if size <= most)
    return size + -(-min(size // 49, _MOST_RESERVED) // MIB) * MIB


def format_options(identity: str, key: Kind) -> list[str]:
    """The luksFormat options for a volume with this UUID and a key of this kind."""
    return [*_LAYOUT, f"--uuid={identity}", *_DERIVATIONS[key]]


def make_luks_image(
    *,
    rootfs: Path | None = None,
    keep: str = "",
    drop: str = "",
    source: str = "",
    kernel: Path,
    initrd: Path,
    denied: Path,
    free: int,
    tools: Path,
    qemu: Path,
    probe_cache: Path,
    config_dir: Path,
    key_file: str | None,
    data_dir: Path,
    platform: str,
    place: Path,
    image: Path,
    header: Path,
    header_digest: Path,
    tables_digest: Path,
    **guest: Path,
) -> None:
    """Write the encrypted image of a root file system with ``free`` bytes to spare, and the files that identify it.

    The tree is that of the tar ``rootfs``, or of the parts of ``guest`` (:func:`sevsnp.images.guest.guest_entries`);
    ``denied`` is the deny-list, which the patterns ``keep`` and ``drop`` change; ``source`` is what the user gave.
    ``header`` is the image's first MiB; each digest is 64 hex digits and a newline. The key is the one given for this
    run, otherwise a new one in ``config_dir``; if ``key_file`` is None, always a new one. ``place`` is where the image
    will lie. Raises UserError, and then leaves no key behind; also for a key that an emulated guest has received, if
    ``platform`` says that the volume is for SEV-SNP.
    """
    chosen = choose_key(key_file, place, config_dir, data_dir, is_for_snp(platform, qemu, probe_cache))
    entries = bootable_entries(rootfs, ImageKind.LUKS, denied, Change.parse(keep, drop), source, "", **guest)
    encrypt(
        FileSystem(rootfs or Path("guest"), entries, root_size(entries, free)),
        Appliance(qemu.resolve(), kernel, initrd, probe_cache),
        chosen,
        tools=tools,
        config_dir=config_dir,
        place=place,
        outputs=Outputs(image, header, header_digest, tables_digest),
    )


@dataclass(frozen=True)
class ChosenKey:
    """The key that the user gave for this run, or None: one is made. ``exposed``: an emulated guest has received it."""

    given: Key | None
    exposed: bool


def choose_key(
    key_file: str | None, place: Path, config_dir: Path, data_dir: Path, for_snp: bool, task: str = "setup_luks"
) -> ChosenKey:
    """The key for a new volume of ``task`` at ``place``.

    Raises UserError for an exposed key, if the volume is for SEV-SNP.
    """
    key = given(key_file, twice=True) if key_file is not None else None
    exposed = key is not None and _was_exposed(key, config_dir, [place.with_name("header.bin"), *_headers(data_dir)])
    if exposed and for_snp:
        raise UserError(
            f"{key.source if key else ''}: this key was sent to an emulated guest, whose host could have kept it",
            f"give another one, or none and one is made: ./doitw {task} PLATFORM=snp LUKS_KEY_FILE=",
        )
    return ChosenKey(key, exposed)


@dataclass(frozen=True)
class FileSystem:
    """The ext4 that a volume gets: its entries, its size in bytes, and the name of its source for messages."""

    source: Path
    entries: Collection[Entry]
    size: int
    label: str = "root"


@dataclass(frozen=True)
class Outputs:
    """The files of a volume: the image, its header, and the digests of the header and of the tables."""

    image: Path
    header: Path
    header_digest: Path
    tables_digest: Path


def encrypt(
    content: FileSystem,
    appliance: Appliance,
    chosen: ChosenKey,
    *,
    tools: Path,
    config_dir: Path,
    place: Path,
    outputs: Outputs,
) -> None:
    """Write an encrypted image with ``content``, its key and its record. Parameters as for :func:`make_luks_image`."""
    identity, key, image = str(uuid.uuid4()), chosen.given, outputs.image
    plain = image.with_suffix(".ext4")
    whole = False
    try:
        make_ext4(
            content.source,
            plain,
            tools=tools.resolve(),
            label=content.label,
            entries=content.entries,
            size=content.size,
            journal=True,
        )
        allocate(image, image_size(content.size))
        record = Record("given" if key else "made", exposed=chosen.exposed, place=str(place.absolute()))
        # Before the key: a key without a record does not tell whether data still need it.
        write_record(config_dir, identity, record)
        key = key or make_key(config_dir, identity)
        made = run_job(
            appliance,
            "luks",
            {"format": format_options(identity, record.key), "size": content.size},
            disks=[ApplianceDisk("source", plain, read_only=True), ApplianceDisk("luks", image)],
            secret=key.data,
            seconds=seconds_for(content.size, JOB_SECONDS),
        )
        found = Luks2.read(image)
        if found.uuid != identity or not opens(found.data, key.data):
            raise UserError(f"{image.name}: was just made, but its key does not open it", "is the disk failing?")
        outputs.header.write_bytes(found.data)
        outputs.header_digest.write_text(hashlib.sha256(found.data).hexdigest() + "\n")
        outputs.tables_digest.write_text(made["tables"] + "\n")
        whole = True
    finally:
        plain.unlink(missing_ok=True)
        if not whole:
            forget(config_dir, identity)
    print(f"  volume {identity}, {made['mapping'] >> 20} MiB; key: {key.source}")


def _headers(data_dir: Path) -> list[Path]:
    return sorted((data_dir / "volumes").glob("*/header.bin"))


def _was_exposed(key: Key, config_dir: Path, headers: Sequence[Path]) -> bool:
    """Whether ``key`` opens one of these volumes of which an emulated guest has received the key."""
    for header in headers:
        with contextlib.suppress(UserError, OSError):
            luks = Luks2.read(header)
            if read_record(config_dir, luks.uuid).exposed and opens(luks.data, key.data):
                return True
    return False


def allocate(path: Path, size: int) -> None:
    """Make a file with all its blocks, so that a full disk is reported now and not by the appliance."""
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size)
