# SPDX-License-Identifier: Apache-2.0
"""DETACH=yes: how long the first console line may take, with a guest that is no more than its files."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.guests import detach
from sevsnp.guests.detach import run_detached
from sevsnp.host.state import running
from tests.support.pretended_guest import pretended
from tests.support.waiting import wait_until


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    pretended(tmp_path, tmp_path / "state", monkeypatch)
    # Less than Python needs to start.
    monkeypatch.setattr(detach, "_SECONDS", 0.01)
    yield tmp_path / "state"
    if found := running(tmp_path / "state"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGKILL)


def test_what_comes_before_the_guest_takes_its_time(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_detached(task="speaks", words=[], state=state, name="first", variable="DETACHED")
    assert "the guest first runs" in capfd.readouterr().out


def test_a_guest_that_stays_silent_is_ended(state: Path) -> None:
    with pytest.raises(UserError, match="the guest first wrote no console line in 0 s"):
        run_detached(task="silent", words=[], state=state, name="first", variable="DETACHED")
    wait_until(lambda: not running(state))
