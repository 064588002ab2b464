"""A user's day with guests that run here: two at once, mistakes, a closed terminal, a kill; nothing is lost."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.e2e import free_port
from sevsnp.vm.state import running
from tests.boot.terminal import left_behind, terminal
from tests.conftest import Built
from tests.pipeline.copies import copy_built
from tests.waiting import wait_until

pytestmark = pytest.mark.boot
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
    copy = copy_built(built, directory / "project")
    try:
        yield copy
    finally:
        for state in (copy.build / "run").glob("*"):
            if (run := running(state)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(run.pid, signal.SIGTERM)
        wait_until(lambda: not left_behind(copy.project), what=lambda: left_behind(copy.project))
        shutil.rmtree(directory)


def test_a_guest_without_a_terminal(day: Built) -> None:
    """Started with DETACH=yes, attested, looked at, and killed; a wrong attempt and a second guest change nothing."""
    state = day.build / "run" / "verity"
    begun = said(day, "run_sev_snp_verity", "DETACH=yes", *SMALL, *ports())
    assert "next: ./doitw attest_verity PLATFORM=emulated" in begun
    first = running(state)
    assert first and first.console
    again = said(day, "run_sev_snp_verity", "DETACH=yes", *SMALL, code=1)
    assert f"a guest runs here already (process {first.pid}, since " in again and "NAME=second" in again
    forgotten = said(day, "attest_verity", code=1)
    assert "the guest verity runs emulated" in forgotten and "./doitw attest_verity PLATFORM=emulated" in forgotten
    assert "verity    emulated" in said(day, "status")

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
