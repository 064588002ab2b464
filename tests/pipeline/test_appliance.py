# SPDX-License-Identifier: Apache-2.0
"""The appliance: it takes a job and returns a result; every failure ends it and gives an error message."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.qemu import blocks
from sevsnp.qemu.appliance import Appliance, ApplianceDisk, run_job
from sevsnp.qemu.process import start
from tests.conftest import PROJECT, Built
from tests.support.appliance_of_tests import appliance_with_probe
from tests.support.processes import ends_with_us
from tests.support.waiting import NET, wait_until

CANARY = b"\0the\ncanary\xff"


@pytest.fixture(scope="module")
def appliance(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    return appliance_with_probe(built, tmp_path_factory.mktemp("appliance"))


def test_the_appliance_takes_a_job_with_a_secret_and_returns_a_result(appliance: Appliance) -> None:
    arguments = {"what": "echo", "text": "ü" * 5000, "number": 1 << 40}
    answer = run_job(appliance, "probe", arguments, disks=[], secret=CANARY, seconds=200)
    assert answer["job"] == {name: value for name, value in arguments.items() if name != "what"}
    assert bytes.fromhex(answer["secret"]) == CANARY
    assert answer["network"] == ["lo"]
    assert "canary" not in answer["cmdline"]


@pytest.mark.full
def test_the_user_sees_the_error_message_of_a_failed_job(appliance: Appliance) -> None:
    with pytest.raises(UserError, match="job probe: no room for a unicorn"):
        run_job(appliance, "probe", {"what": "fail", "words": "no room for a unicorn"}, disks=[], seconds=200)


@pytest.mark.full
def test_the_error_shows_the_console_of_a_job_that_ends_without_a_result(appliance: Appliance) -> None:
    with pytest.raises(UserError, match=r"ended in its job probe\n[\s\S]*a last word"):
        run_job(appliance, "probe", {"what": "end"}, disks=[], seconds=200)


@pytest.mark.full
def test_the_error_shows_the_console_of_an_appliance_that_does_not_boot(appliance: Appliance, tmp_path: Path) -> None:
    broken = tmp_path / "initrd"
    broken.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"ended in its job probe\n[\s\S]*Kernel panic"):
        run_job(replace(appliance, initrd=broken), "probe", {}, disks=[], seconds=200)


def test_the_error_messages_of_qemu_are_shown(built: Built, appliance: Appliance, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    subprocess.run([built.tools / "qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    content = bytearray(image.read_bytes())
    content[23] = 60  # the size of a cluster, as a power of two
    image.write_bytes(content)
    with pytest.raises(UserError, match="Unsupported cluster size"):
        run_job(appliance, "probe", {}, disks=[ApplianceDisk("x", image, "qcow2")], seconds=200)
    with pytest.raises(UserError, match="none: no such file"):
        run_job(appliance, "probe", {}, disks=[ApplianceDisk("x", tmp_path / "none")], seconds=200)


@pytest.mark.full
def test_the_appliance_is_started_again_if_qemu_aborts_before_the_job_begins(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU sometimes aborts without a cause. A job that has begun is not started again."""
    started: list[subprocess.Popen[bytes]] = []

    def aborted_at_first(*words: Any, **options: Any) -> "subprocess.Popen[bytes]":
        started.append(start(*words, **options))
        if len(started) < 3:
            started[-1].send_signal(signal.SIGABRT)
        return started[-1]

    monkeypatch.setattr("sevsnp.qemu.appliance.start", aborted_at_first)
    answer = run_job(appliance, "probe", {"what": "echo", "text": "x"}, disks=[], seconds=200)
    assert answer["job"] == {"text": "x"}
    assert [process.returncode for process in started] == [-signal.SIGABRT, -signal.SIGABRT, 0]

    def abort_when_it_begins(line: bytes) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(line)
        if "begins" in said:
            started[-1].send_signal(signal.SIGABRT)
        return said

    monkeypatch.setattr("sevsnp.qemu.appliance._parse", abort_when_it_begins)
    with pytest.raises(UserError, match="ended in its job probe"):
        run_job(appliance, "probe", {"what": "sleep"}, disks=[], seconds=200)
    assert len(started) == 4


_SLEEP = """
import sys
from pathlib import Path
from sevsnp.qemu.appliance import Appliance, run_job
run_job(Appliance(*map(Path, sys.argv[1:5])), "probe", {"what": "sleep"}, disks=[], seconds=float(sys.argv[5]))
"""


def asleep(appliance: Appliance, seconds: float, tmp_path: Path) -> "subprocess.Popen[bytes]":
    paths = (appliance.qemu, appliance.kernel, appliance.initrd, appliance.probe_cache)
    return subprocess.Popen(
        ends_with_us(sys.executable, "-c", _SLEEP, *paths, str(seconds)),
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def qemus(initrd: Path) -> list[int]:
    """The processes that have the appliance's initramfs on their command line."""
    found: list[int] = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"-initrd" in words and str(initrd).encode() in words:
                found.append(int(path.name))
    return found


def test_a_job_over_its_time_limit_is_killed(appliance: Appliance, tmp_path: Path) -> None:
    process = asleep(appliance, 5, tmp_path)
    _, said = process.communicate(timeout=NET)
    assert process.returncode != 0 and b"no end after 5 s" in said
    assert qemus(appliance.initrd) == []
    assert list(tmp_path.iterdir()) == []


def test_the_appliance_is_killed_with_its_parent_process(appliance: Appliance, tmp_path: Path) -> None:
    process = asleep(appliance, 300, tmp_path)
    wait_until(lambda: qemus(appliance.initrd), what=lambda: "no QEMU")
    assert [oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir() if path.is_dir()] == ["0o700"]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=NET)
    # What it had in its temporary directory goes, too.
    wait_until(
        lambda: not qemus(appliance.initrd) and not any(tmp_path.iterdir()), what=lambda: list(tmp_path.iterdir())
    )


@pytest.mark.full
def test_a_backing_file_is_not_opened(
    built: Built, appliance: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that names one is refused. Without this check QEMU is told that there is none, and may not open it."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"S" * (1 << 20))
    image = tmp_path / "image.qcow2"
    create = ["create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(image)]
    subprocess.run([built.tools / "qemu-img", *create], check=True)
    # What QEMU does with it as it stands.
    convert = ["convert", "-f", "qcow2", "-O", "raw", str(image), str(tmp_path / "followed")]
    subprocess.run([built.tools / "qemu-img", *convert], check=True)
    assert (tmp_path / "followed").read_bytes() == secret.read_bytes()
    disk = ApplianceDisk("x", image, "qcow2", read_only=True)
    with pytest.raises(UserError, match="backing file"):
        run_job(appliance, "probe", {}, disks=[disk], seconds=200)
    monkeypatch.setattr(blocks, "check_whole", lambda *_: None)
    answer = run_job(appliance, "probe", {"what": "first", "role": "x"}, disks=[disk], seconds=200)
    assert answer == {"first": "00" * 16}
