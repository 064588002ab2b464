# SPDX-License-Identifier: Apache-2.0
"""The state directories of a host bundle's guests are where a new bundle in its place leaves them."""

from pathlib import Path

import pytest

from sevsnp.host.bundle_run import OWN, STATE, STATES, state_directory
from tasks import e2e, luks


def test_the_task_leaves_the_directories_that_run_uses() -> None:
    assert e2e.KEPT == (STATE, STATES) and e2e.OWN == OWN


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("state", "state"),
        ("state/deep", "state/deep"),
        ("second", "states/second"),
        ("./second", "states/second"),
        ("a/b", "states/a/b"),
        ("states/second", "states/second"),
        ("lib", "states/lib"),
        ("runtime/new", "states/runtime/new"),
        ("run", "states/run"),
        (".", "states"),
        ("", "states"),
        ("of-before", "of-before"),
        ("of-before/deep", "states/of-before/deep"),
        ("../beside", "../beside"),
        ("/absolute", "/absolute"),
    ],
)
def test_the_place_of_a_state_directory(tmp_path: Path, given: str, place: str) -> None:
    for name in (*OWN, "of-before"):
        (tmp_path / name).mkdir()
    (tmp_path / "run").touch()
    assert state_directory(tmp_path, given) == tmp_path / place


def test_the_disks_of_all_guests_of_a_bundle_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key whose disk is not found could be removed."""
    monkeypatch.chdir(tmp_path)
    names = ("state", "of-before", "states/second", "states/a/b")
    places = [Path("build/host-bundle-luks") / name for name in (*names, "states/without")]
    for place in places:
        place.mkdir(parents=True)
    disks = {place / "luks.img" for place in places[:-1]}
    for disk in disks:
        disk.touch()
    found = luks._of_guests("host-bundle-luks", "luks.img")
    assert set(found) == disks and len(found) == len(disks)
