# SPDX-License-Identifier: Apache-2.0
"""`status` asks doit in a process of its own, which must find the same settings and directories as this one."""

import os
from pathlib import Path

import pytest

from sevsnp.guests import status
from sevsnp.settings.resolved import PLACES, resolve
from sevsnp.settings.table import NAMES
from sevsnp.system.command import environment

DIRECTORIES = ("config_dir", "data_dir", "cache_dir", "artefact_cache")


def places(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The directories of a run with this environment."""
    with monkeypatch.context() as changed:
        for name in os.environ:
            changed.delenv(name)
        for name, text in variables.items():
            changed.setenv(name, text)
        settings = resolve({}, variables, Path("no config.yaml"))
        return {name: getattr(settings, name)() for name in DIRECTORIES}


@pytest.mark.parametrize("name", ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "CONFIG_DIR", "SEVSNP_CACHE"])
def test_the_process_that_status_asks_has_the_same_directories(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []

    def said(_: object, *, env: dict[str, str]) -> bytes:
        asked.append(environment(env))
        return b"U setup_verity\n"

    monkeypatch.setattr(status, "run", said)
    for each in (*NAMES, *PLACES):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("UNRELATED", "a secret")
    usual = places(dict(os.environ), monkeypatch)
    monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert status._letters([]) == {"setup_verity": "U"}
    here = places(dict(os.environ), monkeypatch)
    assert places(asked[0], monkeypatch) == here and "UNRELATED" not in asked[0]
    # Control: a process without this variable would have other directories.
    del asked[0][name]
    assert places(asked[0], monkeypatch) == usual != here
