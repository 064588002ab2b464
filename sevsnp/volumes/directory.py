# SPDX-License-Identifier: Apache-2.0
"""Volumes that guests have written: they hold user data, so each has a directory of its own outside build/.

DATA_DIR/volumes/UUID has everything that a boot and an attestation need: the disk luks.img, its header and the digests
that identify it, both VM configs, and in boot/ the files that these name. It appears completely or not at all.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote

from sevsnp.errors import UserError
from sevsnp.images.data_disk import IMAGE as DATA_IMAGE
from sevsnp.images.data_disk import data_volumes
from sevsnp.images.luks2 import Luks2
from sevsnp.keys.luks_key import check_uuid
from sevsnp.qemu.process import check_files
from sevsnp.system.copying import copy_file
from sevsnp.system.files import remove_tree, scratch_directory, sha256_file, sync, write_durable
from sevsnp.system.locks import held, is_locked
from sevsnp.vm_config.config import Disk, File, VmConfig, read_vm_config, render_vm_config
from sevsnp.vm_config.relocate import files_of, relocated

IMAGE, HEADER, LOCK, BOOT, TAKEN = "luks.img", "header.bin", "lock", "boot", "taken"
# The files that identify the volume beside its header.
DIGESTS = ("header.sha256", "tables.sha256")
CONFIGS = ("vm-config-luks.toml", "vm-config-luks.emulated.toml")


@dataclass(frozen=True)
class Source:
    """The results of setup_luks: header and digests in ``directory``, the VM configs to launch with in ``configs``."""

    directory: Path
    configs: Path

    @property
    def uuid(self) -> str:
        """The UUID of the volume; empty if there is none."""
        try:
            return check_uuid(Luks2.read(self.directory / HEADER).uuid)
        except (UserError, OSError):
            return ""

    @property
    def whole(self) -> bool:
        """Whether all files are there; an interrupted setup_luks leaves only some."""
        return all((self.configs / name).is_file() for name in CONFIGS)

    def read(self) -> list[VmConfig]:
        """Both VM configs. Raises UserError if one is missing, or its files differ from what it says."""
        configs = [read_vm_config(self.configs / name) for name in CONFIGS]
        for config in configs:
            check_files(config.launch, disks=False)
        return configs

    def digest(self) -> str:
        """SHA-256 of both VM configs; it tells with which configs a volume's directory was last updated."""
        return hashlib.sha256(b"\0".join((self.configs / name).read_bytes() for name in CONFIGS)).hexdigest()


def source_of(directory: Path, configs: Path, vm_config: Path | None) -> Source:
    """The source to use: the directory of the user's VM config if a volume lies there, else the given directories.

    An ID block's VM configs are in a directory below.
    """
    for place in (vm_config.parent, vm_config.parent.parent) if vm_config else ():
        if (place / HEADER).is_file() and vm_config:
            return Source(place, vm_config.parent)
    return Source(directory, configs)


@dataclass(frozen=True)
class Volume:
    """The directory of a volume; it need not exist yet. Its name is the volume's UUID."""

    path: Path

    @classmethod
    def of(cls, data_dir: Path, uuid: str) -> "Volume":
        return cls(data_dir / "volumes" / check_uuid(uuid))

    @property
    def uuid(self) -> str:
        return self.path.name

    @property
    def image(self) -> Path:
        return self.path / IMAGE

    @property
    def exists(self) -> bool:
        return self.image.is_file()

    @property
    def source(self) -> Source:
        return Source(self.path, self.path)

    def make(self, source: Source) -> None:
        """Make the directory, with a copy of the image that the VM configs name. Raises UserError if it exists."""
        if self.path.exists():
            raise self.exists_error()
        configs = source.read()
        (image,) = configs[0].launch.disks
        check_files(configs[0].launch)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _room(self.path), scratch_directory(self.path) as scratch:
            new = Volume(scratch / self.uuid)
            new.path.mkdir(mode=0o700)
            copy_file(image.path, new.image, 0o600)
            # A guest whose disk has no more room loses what it writes, so all blocks are allocated now.
            with new.image.open("rb+") as stream:
                os.posix_fallocate(stream.fileno(), 0, image.size)
            for name in (HEADER, *DIGESTS):
                copy_file(source.directory / name, new.path / name, 0o600)
            for config in configs:
                (new.path / config.source.name).write_text(new._rendered(config))
            (new.path / TAKEN).write_text(source.digest())
            for path in (*new.path.rglob("*"), new.path):
                sync(path)
            try:
                new.path.rename(self.path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise self.exists_error() from None
                raise
        sync(self.path.parent)

    def exists_error(self) -> UserError:
        """The error for a directory that must not exist yet."""
        return UserError(
            f"{self.path}: this volume has a directory, and nothing in it was changed",
            f"boot it: ./doitw run_sev_snp_luks VOLUME={self.uuid}",
        )

    def refresh(self, source: Source, *, taken: str) -> bool:
        """Update VM configs and boot files from ``source``; return whether any has changed.

        Each VM config is replaced in one step, after all of its files are there. ``taken`` is kept as the digest of
        setup_luks's VM configs at that time.
        """
        with _room(self.path):
            texts = {self.path / config.source.name: self._rendered(config) for config in source.read()}
            changed = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
            for path in changed:
                write_durable(path, texts[path])
            write_durable(self.path / TAKEN, taken)
            if changed:
                used = {file.path for name in CONFIGS for file in _files(read_vm_config(self.path / name))}
                for path in (self.path / BOOT).iterdir():
                    if path.resolve() not in used:
                        remove_tree(path) if path.is_dir() else path.unlink()
        return bool(changed)

    def taken(self) -> str:
        """The digest that :meth:`refresh` last received; empty if it is not known."""
        try:
            return (self.path / TAKEN).read_text()
        except OSError:
            return ""

    def _rendered(self, config: VmConfig) -> str:
        """The text of the VM config in this directory, after its files are here."""
        (self.path / BOOT).mkdir(mode=0o700, exist_ok=True)

        def place(file: File | Disk) -> Path:
            if isinstance(file, Disk):
                return self.image.resolve()
            target = (self.path / BOOT).resolve() / f"{file.sha256[:16]}-{file.path.name}"
            if file.path.resolve() != target and not (target.exists() and sha256_file(target) == file.sha256):
                with scratch_directory(target) as scratch:
                    copy_file(file.path, scratch / target.name, 0o600)
                    sync(scratch / target.name)
                    (scratch / target.name).replace(target)
                sync(target.parent)
            return target

        launch = relocated(config.launch, place)
        placed = replace(config, source=(self.path / config.source.name).resolve(), launch=launch)
        return render_vm_config(placed)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the volume exclusively. Raises UserError naming the process that holds it."""
        with held(self.path / LOCK, self._taken) as note:
            note(f"process {os.getpid()} since {datetime.now(UTC):%F %T} UTC\n")
            yield

    def _taken(self, holder: str) -> UserError:
        holder = holder.strip() or "another process"
        return UserError(
            f"volume {self.uuid}: in use by {holder}; two guests on one disk would destroy what is on it",
            "end that one first, or take another volume: VOLUME=…",
        )

    @property
    def in_use(self) -> bool:
        """Whether a process holds it exclusively."""
        return is_locked(self.path / LOCK)


def volumes(data_dir: Path) -> list[Volume]:
    """The volumes that have a directory, by UUID."""
    found = []
    for path in sorted((data_dir / "volumes").glob("*-*")):
        with contextlib.suppress(UserError):
            found.append(Volume.of(data_dir, path.name))
    return [volume for volume in found if volume.exists]


def choose(data_dir: Path, source: Source, wanted: str, task: str) -> Volume:
    """The volume whose UUID begins with ``wanted`` (the setting VOLUME), else that of ``source``, else the only one.

    If this does not select exactly one, raises UserError with the command of ``task`` for each volume.
    """
    here = source.uuid
    known = sorted({volume.uuid for volume in volumes(data_dir)} | ({here} if here else set()))
    if not known:
        raise UserError(
            f"no volume, neither in {source.directory} nor in {data_dir / 'volumes'}",
            "make one: ./doitw setup_luks — or set DATA_DIR to where yours are",
        )
    found = [uuid for uuid in known if uuid.startswith(wanted)] if wanted or not here else [here]
    if len(found) == 1:
        return Volume.of(data_dir, found[0])
    if not found:
        what = f"VOLUME={wanted}: no volume whose UUID begins so"
    elif wanted:
        what = f"VOLUME={wanted}: found {len(found)} volumes whose UUID begins so, expected one"
    else:
        what = f"{source.directory}: no volume there, and {len(found)} in {data_dir / 'volumes'}: which one?"
    commands = "\n          ".join(f"./doitw {task} VOLUME={uuid}" for uuid in found or known)
    raise UserError(what, f"run one of them: {commands}")


def left(data_dir: Path) -> list[str]:
    """A line for each volume that has a directory: its path, size and last change, and the command that boots it."""
    lines = []
    for volume in volumes(data_dir):
        status = volume.image.stat()
        written = datetime.fromtimestamp(status.st_mtime, UTC)
        lines.append(
            f"{volume.path}: {status.st_size >> 20} MiB, written {written:%F}; "
            f"boot it: ./doitw run_sev_snp_luks VOLUME={volume.uuid}"
        )
    for path in data_volumes(data_dir):
        status = (path / DATA_IMAGE).stat()
        written = datetime.fromtimestamp(status.st_mtime, UTC)
        lines.append(
            f"{path}: data disk, {status.st_size >> 20} MiB, written {written:%F}; "
            f"make a guest with it: ./doitw setup_verity DATA_SIZE=16M VOLUME={path.name}"
        )
    return lines


def say_what_stays(*, header: Path, earlier: Path, data_dir: Path) -> None:
    """After setup_luks has made the volume with ``header``, print how to boot the volumes that guests have written."""
    own = Luks2.read(header).uuid
    for volume in volumes(data_dir):
        if volume.uuid != own:
            print(f"  volume {volume.uuid} stays as it is; boot it: ./doitw run_sev_snp_luks VOLUME={volume.uuid}")
    if note := note_earlier(earlier, data_dir):
        print(f"  {note}")


def note_earlier(earlier: Path, data_dir: Path) -> str:
    """A hint for the disk that an earlier release wrote to; empty if there is none, or if it was adopted."""
    try:
        uuid = Luks2.read(earlier).uuid
        if Volume.of(data_dir, uuid).exists:
            return ""
    except (OSError, UserError):
        return ""
    place = quote(str(earlier))
    return f"{earlier}: volume {uuid}, written under an earlier release; keep it: ./doitw adopt_luks IMAGE={place}"


def _files(config: VmConfig) -> list[File]:
    return list(files_of(config.launch).values())


@contextlib.contextmanager
def _room(path: Path) -> Iterator[None]:
    """If a disk is full, raise an error that says which, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{path}: cannot be written: {error.strerror}; nothing was changed",
            f"make room there, or set DATA_DIR to another disk: df -h {quote(str(path.parent))}",
        ) from None
