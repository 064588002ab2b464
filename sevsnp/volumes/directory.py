# SPDX-License-Identifier: Apache-2.0
"""Volumes that guests have written: what is on them is their user's, so each has a directory of its own outside build/.

DATA_DIR/volumes/UUID has all that a boot and an attestation need: the disk luks.img, its header and the digests that
name it, both VM configs, and in boot/ the files that these name. It appears whole or not at all.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote

from sevsnp.errors import UserError
from sevsnp.images.luks2 import Luks2
from sevsnp.keys.luks_key import check_uuid
from sevsnp.qemu.process import check_files
from sevsnp.system.copying import copy_file
from sevsnp.system.files import remove_tree, scratch_directory, sha256_file, sync, write_durable
from sevsnp.system.locks import held
from sevsnp.vm_config.config import Disk, File, VmConfig, read_vm_config, render_vm_config
from sevsnp.vm_config.relocate import files_of, relocated

IMAGE, HEADER, LOCK, BOOT, TAKEN = "luks.img", "header.bin", "lock", "boot", "taken"
# What names the volume beside its header.
DIGESTS = ("header.sha256", "tables.sha256")
CONFIGS = ("vm-config-luks.toml", "vm-config-luks.emulated.toml")


@dataclass(frozen=True)
class Source:
    """What setup_luks has made: header and digests in ``directory``, the VM configs to launch with in ``configs``."""

    directory: Path
    configs: Path

    @property
    def uuid(self) -> str:
        """Which volume it is; empty where there is none."""
        try:
            return check_uuid(Luks2.read(self.directory / HEADER).uuid)
        except (UserError, OSError):
            return ""

    @property
    def whole(self) -> bool:
        """Whether all of it is there; a setup_luks that was interrupted leaves a part."""
        return all((self.configs / name).is_file() for name in CONFIGS)

    def read(self) -> list[VmConfig]:
        """Both VM configs. Raises UserError where one is not there, or its files are not what it says."""
        configs = [read_vm_config(self.configs / name) for name in CONFIGS]
        for config in configs:
            check_files(config.launch, disks=False)
        return configs

    def digest(self) -> str:
        """SHA-256 of both VM configs as they are: what the volume's directory was last brought up to date with."""
        return hashlib.sha256(b"\0".join((self.configs / name).read_bytes() for name in CONFIGS)).hexdigest()


def source_of(directory: Path, configs: Path, vm_config: Path | None) -> Source:
    """What to start from: the directory of the VM config that the user names if a volume lies there, else those given.

    An ID block's VM configs are in a directory below.
    """
    for place in (vm_config.parent, vm_config.parent.parent) if vm_config else ():
        if (place / HEADER).is_file() and vm_config:
            return Source(place, vm_config.parent)
    return Source(directory, configs)


@dataclass(frozen=True)
class Volume:
    """The directory of a volume, which need not exist yet; its name is the volume's UUID."""

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
        """Make the directory, with a copy of the image that the VM configs name. Raises UserError where it exists."""
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
            # A guest whose disk has no room any more loses what it writes, so all of it is taken now.
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
        """What is said where there must be none yet."""
        return UserError(
            f"{self.path}: this volume has a directory, and nothing in it was changed",
            f"boot it: ./doitw run_sev_snp_luks VOLUME={self.uuid}",
        )

    def refresh(self, source: Source, *, taken: str) -> bool:
        """Bring VM configs and boot files up to date with ``source``, and say whether any was not.

        Each VM config is replaced in one step, by one whose files are all there. ``taken`` is kept as the digest of
        what setup_luks had made then.
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
        """What :meth:`refresh` was last told; empty where it is not known."""
        try:
            return (self.path / TAKEN).read_text()
        except OSError:
            return ""

    def _rendered(self, config: VmConfig) -> str:
        """The VM config as it stands in this directory, once its files are here."""
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
        """Have the volume for oneself. Raises UserError where another process has it, which is named."""
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
        """Whether a process has it for itself."""
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def volumes(data_dir: Path) -> list[Volume]:
    """The volumes that have a directory, by UUID."""
    found = []
    for path in sorted((data_dir / "volumes").glob("*-*")):
        with contextlib.suppress(UserError):
            found.append(Volume.of(data_dir, path.name))
    return [volume for volume in found if volume.exists]


def choose(data_dir: Path, source: Source, wanted: str, task: str) -> Volume:
    """The volume that ``wanted`` (the setting VOLUME) begins, else that of ``source``, else the only one there is.

    Raises UserError with the command of ``task`` for each, where that is not one.
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
        what = f"VOLUME={wanted}: {len(found)} volumes begin so, expected one"
    else:
        what = f"{source.directory}: no volume there, and {len(found)} in {data_dir / 'volumes'}: which one?"
    commands = "\n          ".join(f"./doitw {task} VOLUME={uuid}" for uuid in found or known)
    raise UserError(what, f"say it: {commands}")


def left(data_dir: Path) -> list[str]:
    """A line for each volume that has a directory: where, how large, since when as it is, and how to boot it."""
    lines = []
    for volume in volumes(data_dir):
        status = volume.image.stat()
        written = datetime.fromtimestamp(status.st_mtime, UTC)
        lines.append(
            f"{volume.path}: {status.st_size >> 20} MiB, written {written:%F}; "
            f"boot it: ./doitw run_sev_snp_luks VOLUME={volume.uuid}"
        )
    return lines


def say_what_stays(*, header: Path, earlier: Path, data_dir: Path) -> None:
    """After setup_luks has made the volume with ``header``: how to boot those that guests have written."""
    own = Luks2.read(header).uuid
    for volume in volumes(data_dir):
        if volume.uuid != own:
            print(f"  volume {volume.uuid} stays as it is; boot it: ./doitw run_sev_snp_luks VOLUME={volume.uuid}")
    if note := note_earlier(earlier, data_dir):
        print(f"  {note}")


def note_earlier(earlier: Path, data_dir: Path) -> str:
    """What to do with the disk that an earlier release wrote to; empty where there is none, or it was adopted."""
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
    """Say which disk is full, and what to do, where one is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{path}: cannot be written: {error.strerror}; nothing was changed",
            f"make room there, or set DATA_DIR to another disk: df -h {quote(str(path.parent))}",
        ) from None
