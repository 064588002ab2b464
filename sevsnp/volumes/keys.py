# SPDX-License-Identifier: Apache-2.0
"""The keys of volumes: which exist, to which disks they belong, and which are no longer needed."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from sevsnp.errors import UserError
from sevsnp.images.data_disk import data_volumes
from sevsnp.images.luks2 import Luks2
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record
from sevsnp.keys.pairs import certificate_der
from sevsnp.keys.paths import Keys
from sevsnp.volumes.directory import volumes


@dataclass(frozen=True)
class VolumeKey:
    """The key or the record of one volume, or both; ``belongs`` are its disks that were found.

    ``record`` is None if it is missing or damaged.
    """

    config_dir: Path
    uuid: str
    record: Record | None
    belongs: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """The existing files."""
        key = luks_key.key_path(self.config_dir, self.uuid)
        return [path for path in (key, key.with_suffix(".json")) if path.exists()]

    @property
    def unused(self) -> bool:
        """Whether its removal loses nothing: no disk of it was found, and no guest has ever received it."""
        return not self.belongs and self.record is not None and not self.record.opened

    def describe(self) -> str:
        """The key in one line or two."""
        record = self.record
        if record is None:
            what = "no readable record"
        else:
            what = f"{record.key}, generation {record.generation}" + (", exposed" if record.exposed else "")
            what += "" if record.opened else ", never opened"
        return f"{self.uuid}: {what}; {', '.join(map(str, self.belongs)) or 'belongs to nothing'}"


def volume_keys(config_dir: Path, disks: Sequence[Path], data_dir: Path) -> Iterator[VolumeKey]:
    """All volume keys in ``config_dir``. Their disks are searched for in ``disks``, images or headers, in the volumes'
    own directories, and at the path that each record names.
    """
    found: dict[str, list[Path]] = {}
    for path in disks:
        found.setdefault(_uuid(path), []).append(path)
    for path in (*(volume.path for volume in volumes(data_dir)), *data_volumes(data_dir)):
        found.setdefault(path.name, []).append(path)
    for uuid in luks_key.known_volumes(config_dir):
        record = None
        with contextlib.suppress(UserError, OSError):
            record = luks_key.read_record(config_dir, uuid)
        belongs = list(found.get(uuid, ()))
        place = Path(record.place) if record and record.place else None
        if place and _uuid(place) == uuid and not any(place == path.absolute() for path in belongs):
            belongs.append(place)
        yield VolumeKey(config_dir, uuid, record, tuple(belongs))


def list_keys(*, config_dir: Path, key_dirs: Sequence[Path], disks: Sequence[Path], data_dir: Path) -> None:
    """`keys`: print the user's and the owner's keys, and each volume's in ``config_dir`` and in ``key_dirs``."""
    keys = Keys.of(config_dir)
    print(f"user key: {_shown(keys.user_private)}")
    digest = ""
    with contextlib.suppress(UserError):
        digest = f", SHA-256 {hashlib.sha256(certificate_der(keys.owner_certificate)).hexdigest()}"
    print(f"owner certificate: {_shown(keys.owner_certificate)}{digest}")
    for directory in (config_dir, *key_dirs):
        found = list(volume_keys(directory, disks, data_dir))
        print(f"volume keys in {directory / 'volumes'}: {len(found) or 'none'}")
        for each in found:
            print(f"  {each.describe()}")
            if not each.belongs:
                print(f"    {'./doitw keys_prune removes it' if each.unused else _by_hand(each)}")


def prune_keys(*, config_dir: Path, checkout: Path, disks: Sequence[Path], data_dir: Path) -> None:
    """`keys_prune`: remove the keys that no disk and no guest ever needed; print the others that belong to no disk.

    A key that another checkout than ``checkout`` made may be about to be used there: it is printed, too.
    """
    removed = 0
    for each in volume_keys(config_dir, disks, data_dir):
        if each.belongs:
            continue
        if each.unused and _is_ours(each, checkout):
            luks_key.forget(config_dir, each.uuid)
            removed += 1
            print(f"removed: {each.describe()}")
        else:
            print(f"left: {each.describe()}\n  {_by_hand(each)}")
    print(f"{removed or 'no'} key{'' if removed == 1 else 's'} removed")


def drop_replaced(*, config_dir: Path, image: Path, disks: Sequence[Path], data_dir: Path) -> None:
    """Remove the keys of earlier or unfinished volumes at ``image``, if no user can have data on them."""
    for each in volume_keys(config_dir, disks, data_dir):
        if each.unused and each.record and Path(each.record.place) == image.absolute():
            luks_key.forget(config_dir, each.uuid)


def _is_ours(key: VolumeKey, checkout: Path) -> bool:
    """Whether this checkout made the key, or a checkout that no longer exists."""
    place = Path(key.record.place) if key.record else Path()
    made_in = place.parents[2] if len(place.parents) > 2 else place
    return made_in == checkout or not made_in.exists()


def _by_hand(key: VolumeKey) -> str:
    why = (
        "made in another checkout" if key.unused else "a guest may have written its disk, which nobody can read without"
    )
    return f"{why}; to remove it: rm {' '.join(quote(str(path)) for path in key.files)}"


def _shown(path: Path) -> str:
    return str(path) if path.exists() else f"{path} (not there; made when it is needed)"


def _uuid(path: Path) -> str:
    """The UUID of the volume whose image or header is ``path``; empty for any other file."""
    try:
        return Luks2.read(path).uuid
    except (UserError, OSError):
        return ""
