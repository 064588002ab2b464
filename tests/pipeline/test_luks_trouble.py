# SPDX-License-Identifier: Apache-2.0
"""An interrupted build of a volume: no half-made volume passes for a whole one, no process stays, the rerun works."""

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.images.luks2 import HEADER_SIZE, Luks2, opens
from sevsnp.keys import luks_key
from tests.conftest import Built
from tests.pipeline.test_full_disk import Namespace, namespace, refused
from tests.support.copies import one_line
from tests.support.luks_ground import OUTPUTS, SECONDS, Ground, make_ground
from tests.support.processes import ends_with_us
from tests.support.waiting import NET

__all__ = ["namespace"]  # a fixture

MIB = 1 << 20
SECONDS_TO_DIE = NET


@pytest.fixture
def ground(built: Built, tmp_path: Path) -> Iterator[Ground]:
    with make_ground(built, tmp_path / "ground") as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_lives_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever happened, in the end."""
    ground: Ground = request.getfixturevalue("ground")
    yield
    assert ended(ground) == []


def ended(ground: Ground) -> list[str]:
    """What still lives after a time in which everything should have ended."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (living := ground.living()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return living


def start(ground: Ground, output: Path) -> "subprocess.Popen[bytes]":
    with output.open("wb") as stream:
        return subprocess.Popen(
            ends_with_us(ground.project / "doitw", *ground.words),
            env=ground.environment,
            cwd=ground.project,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def machine(ground: Ground) -> int:
    """The process of this ground's appliance."""
    mark = "serial=luks,"
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(mark in word for word in words) and any(str(ground.temporary) in word for word in words):
                return int(entry.name)
    raise AssertionError("there is no appliance")


def half_made(ground: Ground, besides: Path | None = None) -> Path | None:
    """The image under its temporary name, once cryptsetup has written its header; the data come after that.

    A killed run leaves ``besides``, which the next one removes.
    """
    for path in ground.luks.glob(".luks.img.????????/image/luks.img"):
        if path == besides:
            continue
        with contextlib.suppress(OSError, UserError):
            if Luks2.read(path).metadata["keyslots"]:
                return path
    return None


def wait_until_it_writes(
    ground: Ground, process: "subprocess.Popen[bytes]", more: float = 0.1, besides: Path | None = None
) -> Path:
    """Until the appliance has formatted the image, and for ``more`` seconds of filling it."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be disturbed"
        if found := half_made(ground, besides):
            time.sleep(more)
            return found
        time.sleep(0.02)
    raise AssertionError("the appliance wrote nothing")


def whole(ground: Ground) -> bool:
    """Whether there is a volume. Where any of its files is, all belong together, and its key opens it."""
    present = [name for name in OUTPUTS if (ground.luks / name).exists()]
    if not present:
        return False
    assert present == list(OUTPUTS)
    header = (ground.luks / "header.bin").read_bytes()
    with (ground.luks / "luks.img").open("rb") as image:
        assert image.read(HEADER_SIZE) == header
    assert (ground.luks / "header.sha256").read_text() == hashlib.sha256(header).hexdigest() + "\n"
    assert len((ground.luks / "tables.sha256").read_text()) == 65
    key = luks_key.read_made_key(ground.built.config_dir, Luks2.parse(header).uuid)
    assert opens(header, key.data)
    return True


def made_anew(ground: Ground) -> None:
    """The rerun: it works, leaves nothing behind, and is at rest then."""
    done = ground.doitw(*ground.words)
    assert done.returncode == 0, done.stdout
    assert whole(ground) and ground.leavings() == []
    assert "▸" not in ground.doitw(*ground.words).stdout


@pytest.mark.full
def test_a_killed_build_and_a_killed_appliance_leave_no_volume(ground: Ground, tmp_path: Path) -> None:
    """SIGKILL of doit while the appliance writes, then of the appliance's QEMU; then a complete run."""
    process = start(ground, tmp_path / "output")
    image = wait_until_it_writes(ground, process)
    assert machine(ground) != process.pid
    # Control: what is there under its temporary name has a header that its key opens, and would pass for a volume.
    header = Luks2.read(image)
    assert opens(header.data, luks_key.read_made_key(ground.built.config_dir, header.uuid).data)
    process.kill()
    process.wait()
    assert ended(ground) == []
    assert not whole(ground)
    lost = luks_key.key_path(ground.built.config_dir, header.uuid)
    assert lost.exists()  # nobody could remove it

    process = start(ground, tmp_path / "output")
    wait_until_it_writes(ground, process, besides=image)
    os.kill(machine(ground), signal.SIGKILL)
    assert process.wait(60) != 0
    said = (tmp_path / "output").read_text()
    assert "luks image" in one_line(said) and "appliance" in said, said
    assert not whole(ground) and ground.leavings() == []
    assert luks_key.known_volumes(ground.built.config_dir) == [header.uuid], "one that failed takes its key with it"

    made_anew(ground)
    assert not lost.exists(), "and what the killed one left goes once there is another"


@pytest.mark.full
@pytest.mark.parametrize("more", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_rebuild_keeps_the_volume_before_it(
    ground: Ground, tmp_path: Path, number: signal.Signals, more: float
) -> None:
    made_anew(ground)
    before = (ground.luks / "header.bin").read_bytes()
    (ground.base / "root.tar").write_bytes((ground.base / "root.tar").read_bytes() + bytes(10240))
    process = start(ground, tmp_path / "output")
    wait_until_it_writes(ground, process, more)
    os.killpg(process.pid, number)
    process.wait(60)
    assert ended(ground) == []
    if process.returncode:
        assert whole(ground) and (ground.luks / "header.bin").read_bytes() == before
    made_anew(ground)
    current = Luks2.read(ground.luks / "header.bin").uuid
    assert luks_key.known_volumes(ground.built.config_dir) == [current]


# In MiB: the file system's blocks take about 2, the image 28. Every byte of that is asked for before the appliance
# starts, so that it never meets a full disk.
@pytest.mark.parametrize("room", [1, pytest.param(20, marks=pytest.mark.full)])
def test_a_full_disk_leaves_no_file_of_a_volume(ground: Ground, namespace: Namespace, room: int) -> None:
    seen = namespace.mount(ground.luks, f"size={room}m")
    done = on_that_disk(ground, namespace)
    assert done.returncode != 0, done.stdout
    refused(done.stdout, "build/luks")
    assert list(seen.iterdir()) == []


@pytest.mark.full
def test_the_next_run_with_enough_room_makes_the_volume(ground: Ground, namespace: Namespace) -> None:
    namespace.mount(ground.luks, "size=20m")
    assert on_that_disk(ground, namespace).returncode != 0
    seen = namespace.mount(ground.luks, "size=400m")
    done = on_that_disk(ground, namespace)
    assert done.returncode == 0, done.stdout
    assert set(OUTPUTS) < {path.name for path in seen.iterdir()}


@pytest.mark.full
@pytest.mark.parametrize("options", ["nr_inodes=1", "nr_inodes=2", "size=4k"])
def test_a_full_tmpdir_leaves_no_half_made_volume(ground: Ground, namespace: Namespace, options: str) -> None:
    """The appliance's console and its socket are there."""
    temporary = namespace.mount(ground.temporary, options)
    done = on_that_disk(ground, namespace)
    if done.returncode:
        one_line(done.stdout)
    assert list(temporary.iterdir()) == [] and whole(ground) == (done.returncode == 0)


def on_that_disk(ground: Ground, namespace: Namespace) -> "subprocess.CompletedProcess[str]":
    """``./doitw setup_luks`` in the mount namespace."""
    return subprocess.run(
        namespace.argv("env", "-C", ground.project, ground.project / "doitw", *ground.words),
        env=ground.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
