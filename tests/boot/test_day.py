# SPDX-License-Identifier: Apache-2.0
"""A user works with local guests for a day: two at once, mistakes, a closed terminal, a kill; no data is lost."""

import base64
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.e2e.guest import free_port
from sevsnp.host.state import running
from tests.conftest import Built
from tests.support.copies import copy_with_keys
from tests.support.harness import BOOT_SECONDS
from tests.support.terminal import left_behind, terminal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.boot
# A public key in the form of RFC 8709 that nobody has.
OTHER_KEY = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(range(32))
SMALL = ("PLATFORM=emulated", "GUEST_NETWORK=restricted", "MEMORY=1G")


def ports() -> tuple[str, str]:
    return f"SSH_PORT={free_port()}", f"ATTEST_PORT={free_port()}"


def said(built: Built, *words: str, code: int = 0) -> str:
    done = built.doit(*words, check=False)
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def day(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The built project as its user has it; no guest is left when the day is over."""
    directory = tmp_path_factory.mktemp("day")
    # Keys and records of its own: no other test is to meet a volume that this user has booted.
    copy = copy_with_keys(built, directory)
    try:
        yield copy
    finally:
        for state in (copy.build / "run").glob("*"):
            if (run := running(state)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(run.pid, signal.SIGTERM)
        wait_until(lambda: not left_behind(copy.project), what=lambda: left_behind(copy.project))
        shutil.rmtree(directory)


def test_a_detached_guest_is_attested_used_and_killed(day: Built) -> None:
    """The guest is started with DETACH=yes; a wrong attempt and the start of a second guest do not change it."""
    state = day.build / "run" / "verity"
    port = free_port()
    begun = said(day, "run_sev_snp_verity", "DETACH=yes", f"FORWARD={port}:9443", *SMALL, *ports())
    assert f"127.0.0.1:{port} leads to the guest's port 9443" in begun
    assert "next: ./doitw attest_verity PLATFORM=emulated" in begun
    first = running(state)
    assert first and first.console
    again = said(day, "run_sev_snp_verity", "DETACH=yes", *SMALL, code=1)
    assert f"a guest runs here already (process {first.pid}, since " in again and "NAME=second" in again
    forgotten = said(day, "attest_verity", code=1)
    assert "the guest verity runs emulated" in forgotten and "./doitw attest_verity PLATFORM=emulated" in forgotten
    shown = said(day, "status")
    assert "verity    emulated" in shown and f"verity: 127.0.0.1:{port} leads to the guest's port 9443" in shown

    accepted = said(day, "attest_verity", "PLATFORM=emulated")  # waits until it has booted
    assert f"log in with: ssh -F {Path('build/run/verity/ssh_config')} guest" in accepted
    assert "accepted (emulated): launch digest" in accepted
    document = json.loads((state / "verdict.emulated.json").read_text())
    assert document["accepted_as_emulated"] is True and document["emulated"] is True
    assert "Accepted as emulated" in (state / "verdict.emulated.html").read_text()
    assert "next: ./doitw ssh NAME=verity" in said(day, "status")
    assert "hello from 6" in said(day, "ssh", "-c", "echo hello from $((2*3))")

    # Another owner's VM config, with another launch digest: refused, and kept apart; the guest stays open.
    other = day.project / "other.toml"
    text = (day.build / "verity" / "vm-config-verity.emulated.toml").read_text()
    digest = str(document["measurement"])
    other.write_text(text.replace(digest, digest[::-1]).replace('path = "', f'path = "{day.build}/verity/'))
    refused = said(day, "attest_verity", "PLATFORM=emulated", f"VM_CONFIG={other}", code=1)
    assert "REFUSED (measurement)" in refused and "build/run/verity/refused/verdict.emulated.html" in refused
    assert json.loads((state / "refused" / "verdict.emulated.json").read_text())["reason"] == "measurement"
    assert json.loads((state / "verdict.emulated.json").read_text()) == document
    assert "still in" in said(day, "ssh", "-c", "echo still in")

    with terminal(day, "console") as console:
        console.wait_for("Ctrl-] leaves it")
        said(day, "ssh", "-c", "echo written on the console | sudo tee /dev/ttyS0")
        console.wait_for("written on the console")
        console.type(b"\x1d")
        console.wait_for("left the console; the guest runs on")
    assert "written on the console" in said(day, "logs", "NAME=verity")

    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not left_behind(day.project), what=lambda: left_behind(day.project))
    assert running(state) is None
    assert "no guest runs here" in said(day, "status")
    assert "no guest runs here" in said(day, "stop", code=1)
    assert "written on the console" in said(day, "logs", "NAME=verity")


@pytest.mark.full
def test_both_workflows_run_in_two_terminals_for_a_whole_day(day: Built, tmp_path: Path) -> None:
    """After mistakes, a closed terminal and ./doitw clean, the file that was written in the guest is still there."""
    data = f"DATA_DIR={tmp_path / 'data'}"
    verity, luks = (day.build / "run" / name for name in ("verity", "luks"))
    with (
        terminal(day, "run_sev_snp_verity", *SMALL, *ports()) as first,
        terminal(day, "run_sev_snp_luks", data, *SMALL, *ports()) as second,
    ):
        # Told again once the firmware has cleared the screen.
        second.wait_for("waiting for the disk key", net=BOOT_SECONDS)
        second.wait_for("\x1b[1mnext, in a second terminal: ./doitw attest_luks", net=BOOT_SECONDS)
        both = said(day, "status")
        assert "verity    emulated" in both and "luks      emulated" in both
        assert "runs emulated" in said(day, "attest_luks", data, code=1)  # the guest has heard nothing of it
        said(day, "attest_luks", data, "PLATFORM=emulated")
        said(day, "attest_verity", "PLATFORM=emulated")
        for name in ("verity", "luks"):
            assert "hello" in said(day, "ssh", f"NAME={name}", "-c", "echo hello")
        said(day, "ssh", "NAME=luks", "-c", "echo kept | sudo tee /root/file >/dev/null && sync")

        again = said(day, "attest_luks", data, "PLATFORM=emulated")
        assert "the guest has its key. Its evidence of " in again and "accepted (emulated)" in again
        for wrong in (damaged_evidence(luks), other_host_key(luks)):
            with wrong:
                said(day, "attest_luks", data, "PLATFORM=emulated", code=1)
        said(day, "attest_luks", data, "PLATFORM=emulated")  # control: with both as they were
        assert "a guest runs here already" in said(day, "run_sev_snp_luks", data, *SMALL, code=1)
        volume = next((tmp_path / "data" / "volumes").iterdir())
        taken = said(day, "run_sev_snp_luks", data, "NAME=other", *SMALL, *ports(), code=1)
        assert volume.name in taken and "Connection reset" not in taken

        second.close()
        second.process.wait(120)
        wait_until(lambda: running(luks) is None)
        assert running(verity)
        os.kill(running(verity).pid, signal.SIGKILL)  # type: ignore[union-attr]
        first.process.wait(120)
    wait_until(lambda: not left_behind(day.project), what=lambda: left_behind(day.project))

    left = said(day, "clean", data)
    assert f"./doitw run_sev_snp_luks VOLUME={volume.name}" in left
    assert not (day.build / "luks" / "luks.img").exists()
    said(day, "run_sev_snp_luks", data, "DETACH=yes", *SMALL, *ports())
    said(day, "attest_luks", data, "PLATFORM=emulated")
    assert "kept" in said(day, "ssh", "-c", "sudo cat /root/file")
    assert "the guest luks has powered off" in said(day, "stop")
    assert "no guest runs here" in said(day, "status")


@contextlib.contextmanager
def damaged_evidence(state: Path) -> Iterator[None]:
    """One bit of the kept report is another one."""
    path = state / "evidence.emulated.json"
    kept = path.read_text()
    document = json.loads(kept)
    report = bytearray(base64.b64decode(document["report"]))
    report[0x90] ^= 1
    path.write_text(json.dumps({**document, "report": base64.b64encode(report).decode()}))
    yield
    path.write_text(kept)


@contextlib.contextmanager
def other_host_key(state: Path) -> Iterator[None]:
    """ssh knows another host key than the guest's."""
    path = state / "known_hosts"
    kept = path.read_text()
    path.write_text(f"{kept.split()[0]} ssh-ed25519 {base64.b64encode(OTHER_KEY).decode()}\n")
    yield
    path.write_text(kept)
