# SPDX-License-Identifier: Apache-2.0
"""The directory of a volume that a guest has written: complete or absent, up to date, used by one guest, never lost."""

import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.qemu.process import check_files
from sevsnp.system import files
from sevsnp.vm_config.config import read_vm_config
from sevsnp.volumes import directory as volumes
from sevsnp.volumes.directory import CONFIGS, Source, Volume, choose, left, source_of
from tests.support.written_volume import make_source, uuid_of

TASK = "run_sev_snp_luks"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "build" / "luks")


@pytest.fixture
def volume(data: Path, source: Source) -> Volume:
    made = Volume.of(data, source.uuid)
    made.make(source)
    return made


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_volume_needs_no_file_that_it_was_made_from(volume: Volume, source: Source) -> None:
    made = {name: read_vm_config(source.configs / name) for name in CONFIGS}
    shutil.rmtree(source.directory)
    for name in CONFIGS:
        config = read_vm_config(volume.path / name)
        check_files(config.launch)  # all there, and of the right content
        assert config.reference == made[name].reference and config.policy == made[name].policy
        for path in (*(file.path for file in volumes._files(config)), *(disk.path for disk in config.launch.disks)):
            assert path.is_relative_to(volume.path.resolve())
        text = (volume.path / name).read_text()
        assert str(volume.path.parent) not in text, "it can be moved, and no path of its making is in it"
    assert volume.source.uuid == volume.uuid and volume.source.whole
    assert (volume.path / "tables.sha256").read_text() == "0" * 64 + "\n"


def test_other_users_may_not_read_a_volume(volume: Volume) -> None:
    for path in (volume.path, volume.path.parent, volume.path / "boot"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert volume.image.stat().st_mode & 0o777 == 0o600


def test_all_blocks_of_a_volume_are_allocated(data: Path, tmp_path: Path) -> None:
    """Otherwise a guest could meet a full disk of the host while its own disk has free space."""
    source = make_source(tmp_path / "sparse")
    with (source.directory / "luks.img").open("r+b") as stream:
        stream.truncate(16 << 20)
    make_configs_fit(source)
    made = Volume.of(data, source.uuid)
    made.make(source)
    assert (source.directory / "luks.img").stat().st_blocks * 512 < 8 << 20  # control: the image itself is sparse
    assert made.image.stat().st_blocks * 512 >= 16 << 20


def make_configs_fit(source: Source) -> None:
    from sevsnp.system.files import sha256_file

    image = source.directory / "luks.img"
    for name in CONFIGS:
        path = source.configs / name
        (disk,) = read_vm_config(path).launch.disks
        text = path.read_text().replace(f"size = {disk.size}", f"size = {image.stat().st_size}")
        path.write_text(text.replace(disk.sha256, sha256_file(image)))


def test_an_existing_volume_is_never_made_again(volume: Volume, source: Source) -> None:
    volume.image.write_bytes(b"what the guest wrote")
    before = content(volume.path)
    with pytest.raises(UserError, match="has a directory, and nothing in it was changed") as refused:
        volume.make(source)
    assert f"VOLUME={volume.uuid}" in refused.value.hint
    assert content(volume.path) == before


def test_a_changed_image_is_not_taken(data: Path, source: Source) -> None:
    image = source.directory / "luks.img"
    image.write_bytes(image.read_bytes()[:-1] + b"X")
    with pytest.raises(UserError, match=r"found SHA-256 .* \(luks\)"):
        Volume.of(data, source.uuid).make(source)
    assert volumes.volumes(data) == []


@pytest.mark.parametrize("step", ["copy_file", "sync", "render_vm_config"])
def test_a_full_disk_leaves_nothing(data: Path, source: Source, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = Volume.of(data, source.uuid)
    with monkeypatch.context() as patch:
        patch.setattr(volumes, step, full)
        with pytest.raises(UserError, match="No space left on device; nothing was changed") as refused:
            made.make(source)
    assert "DATA_DIR" in refused.value.hint
    assert list((data / "volumes").iterdir()) == []
    made.make(source)  # control


def _die(data: Path, directory: Path, number: int) -> None:
    """Make a volume, and be killed at the ``number``-th thing that has to be on the disk."""
    count = 0
    sync = files.sync

    def counted(path: Path) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    vars(volumes)["sync"] = files.sync = counted
    source = Source(directory, directory)
    Volume.of(data, source.uuid).make(source)


@pytest.mark.parametrize("number", [1, 6, 14, 17])
def test_a_process_killed_while_making_a_volume_leaves_all_or_nothing(data: Path, source: Source, number: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=_die, args=(data, source.directory, number))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    made = Volume.of(data, source.uuid)
    if made.path.exists():  # killed after its last step
        check_files(read_vm_config(made.path / CONFIGS[0]).launch)
    else:
        assert volumes.volumes(data) == []
        made.make(source)
        assert [path.name for path in (data / "volumes").iterdir()] == [made.uuid], "and what it left is gone"


def test_changed_files_are_updated_and_the_disk_stays(volume: Volume, source: Source) -> None:
    volume.image.write_bytes(b"what the guest wrote")
    boot = set((volume.path / "boot").iterdir())
    assert not volume.refresh(source, taken=source.digest()), "nothing has changed"
    (source.directory / "kernel").write_bytes(b"a newer kernel")
    with pytest.raises(UserError, match=r"\(kernel\)"):  # VM configs that are not up to date
        volume.refresh(source, taken=source.digest())
    assert set((volume.path / "boot").iterdir()) == boot
    rewritten(source, "kernel")
    assert volume.refresh(source, taken=source.digest())
    for name in CONFIGS:
        config = read_vm_config(volume.path / name)
        check_files(config.launch, disks=False)
        assert config.launch.kernel.path.read_bytes() == b"a newer kernel"
    assert volume.image.read_bytes() == b"what the guest wrote"
    assert len(list((volume.path / "boot").iterdir())) == len(boot), "what is needed no more is gone"
    assert volume.taken() == source.digest()


def rewritten(source: Source, name: str) -> None:
    """The VM configs as setup_luks writes them after a change of the file ``name``."""
    from sevsnp.system.files import sha256_file

    for each in CONFIGS:
        path = source.configs / each
        old = getattr(read_vm_config(path).launch, name).sha256
        path.write_text(path.read_text().replace(old, sha256_file(source.directory / name)))


def test_an_update_interrupted_between_the_two_vm_configs_is_completed(
    volume: Volume, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source.directory / "kernel").write_bytes(b"a newer kernel")
    rewritten(source, "kernel")
    write = files.write_durable

    def once(path: Path, text: str) -> None:
        write(path, text)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(volumes, "write_durable", once)
        with pytest.raises(KeyboardInterrupt):
            volume.refresh(source, taken=source.digest())
    kernels = set()
    for name in CONFIGS:
        config = read_vm_config(volume.path / name)
        check_files(config.launch, disks=False)
        kernels.add(config.launch.kernel.sha256)
    assert len(kernels) == 2 and volume.taken() != source.digest(), "each is whole, and the next run goes on"
    assert volume.refresh(source, taken=source.digest())


def test_one_guest_at_a_time(volume: Volume) -> None:
    assert not volume.in_use
    with volume.locked():
        assert volume.in_use
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()} since \d{{4}}-.* UTC"), volume.locked():
            raise AssertionError
    assert not volume.in_use
    with volume.locked():  # control
        pass


def test_the_lock_ends_with_its_process(volume: Volume) -> None:
    def hold(path: Path, ready: Any) -> None:
        with Volume(path).locked():
            ready.set()
            signal.pause()

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(volume.path, ready))
    process.start()
    assert ready.wait(60) and volume.in_use
    with pytest.raises(UserError, match=f"process {process.pid} since"), volume.locked():
        pass
    process.kill()
    process.join(60)
    with volume.locked():
        pass


def test_the_volume_of_a_command_is_chosen(data: Path, tmp_path: Path) -> None:
    nothing = Source(tmp_path / "none", tmp_path / "none")
    with pytest.raises(UserError, match="no volume, neither in") as refused:
        choose(data, nothing, "", TASK)
    assert "./doitw setup_luks" in refused.value.hint
    first, second, third = (make_source(tmp_path / str(seed), seed) for seed in (1, 2, 13))
    Volume.of(data, first.uuid).make(first)
    assert choose(data, nothing, "", TASK).uuid == first.uuid, "the only one"
    Volume.of(data, second.uuid).make(second)
    with pytest.raises(UserError, match="which one") as refused:
        choose(data, nothing, "", TASK)
    for seed in (1, 2):
        assert f"./doitw {TASK} VOLUME={uuid_of(seed)}" in refused.value.hint
    assert choose(data, third, "", TASK).uuid == third.uuid, "that of build/luks, made or not"
    assert choose(data, third, uuid_of(2), TASK).uuid == second.uuid
    assert choose(data, third, uuid_of(13), TASK).uuid == third.uuid
    with pytest.raises(UserError, match="VOLUME=0000: found 3 volumes whose UUID begins so, expected one"):
        choose(data, third, "0000", TASK)
    with pytest.raises(UserError, match="VOLUME=abc: no volume whose UUID begins so") as refused:
        choose(data, third, "abc", TASK)
    assert refused.value.hint.count("VOLUME=") == 3


def test_the_beginning_of_a_uuid_is_enough(data: Path, source: Source, volume: Volume) -> None:
    shutil.rmtree(source.directory)
    assert choose(data, source, volume.uuid[:4], TASK) == volume


def test_the_given_vm_config_decides_the_volume(source: Source, tmp_path: Path) -> None:
    other = make_source(tmp_path / "other", 2)
    assert source_of(source.directory, source.configs, None) == source
    assert source_of(source.directory, source.configs, other.configs / CONFIGS[0]) == other
    signed = other.directory / "idblock"
    signed.mkdir()
    assert source_of(source.directory, source.configs, signed / CONFIGS[0]) == Source(other.directory, signed)
    assert source_of(source.directory, source.configs, tmp_path / CONFIGS[0]) == source


def test_remaining_volumes_are_named_with_their_command(data: Path, volume: Volume) -> None:
    (line,) = left(data)
    assert str(volume.path) in line and line.endswith(f"./doitw run_sev_snp_luks VOLUME={volume.uuid}")
    assert left(data / "none") == []


def test_a_name_that_is_not_a_uuid_is_refused(data: Path) -> None:
    for name in ("../..", "x" * 36, ""):
        with pytest.raises(UserError, match="expected a UUID"):
            Volume.of(data, name)
    (data / "volumes" / "not-one").mkdir(parents=True)
    assert volumes.volumes(data) == []
