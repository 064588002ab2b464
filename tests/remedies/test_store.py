# SPDX-License-Identifier: Apache-2.0
"""Hints of the artefact cache, of settings, and of doit itself: in a checkout in which nothing is built."""

import re
from pathlib import Path

import pytest

from sevsnp.packages.tree import replace_tree
from sevsnp.pipeline.welcome import WELCOME
from sevsnp.settings.resolved import resolve
from sevsnp.store.digests import Index
from sevsnp.store.local import LocalStore
from sevsnp.store.oci_reference import parse_reference
from tests.support import makers
from tests.support.table import Told, remedies
from tests.unit.store.test_local_store import keep_bytes


@pytest.mark.full
@remedies("sevsnp.store.local", "set SEVSNP_CACHE to a directory of your own, or CACHE=off to build without it")
def test_a_cache_that_others_can_write_to(told: Told, clone: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").touch()
    for bad in (tmp_path / "open", tmp_path / "file"):
        told.instead(
            lambda bad=bad: told.doitw("cache_status", f"SEVSNP_CACHE={bad}"),  # type: ignore[misc]
            lambda: told.doitw("cache_status", f"SEVSNP_CACHE={tmp_path / 'mine'}"),
        )
    made = ("run", "-s", "_keys", f"SEVSNP_CACHE={tmp_path / 'open'}", "CACHE=off")
    assert told.doitw(*made).returncode == 0


@remedies("sevsnp.store.cache", "remove CACHE=off from the command line, the environment and config.yaml")
def test_no_cache(told: Told, clone: Path) -> None:
    told.instead(lambda: told.doitw("cache_status", "CACHE=off"), lambda: told.doitw("cache_status"))


@remedies("sevsnp.store.upkeep", "try again when it has ended", "build again: that makes what was damaged")
def test_a_cache_that_is_in_use_or_damaged(told: Told, clone: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "cache", Index(None))
    with store.in_use():
        told.hint(lambda: told.doitw("cache_prune"))
    assert told.doitw("cache_prune").returncode == 0
    keep_bytes(store, 1, b"x" * 10000)
    [blob] = [path for path in (tmp_path / "cache" / "blobs").rglob("*") if path.is_file()]
    blob.chmod(0o600)
    blob.write_bytes(b"damaged")
    told.hint(lambda: told.doitw("cache_verify"))
    keep_bytes(store, 1, b"x" * 10000)  # as the task that needs it does
    assert told.doitw("cache_verify").returncode == 0


@remedies("sevsnp.store.replacing", "keep it in a directory that builds leave alone: mkdir -p {} && mv {} {}")
def test_a_user_s_directory_in_a_tree(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    makers.begin()
    made = makers.artefact("grow", "build/a tree", ignored=("state", "states"), own=("deep",))
    with makers.run():
        makers.Seen(made)
        for name in ("second", "a third"):
            (tmp_path / "build/a tree" / name).mkdir()
            (tmp_path / "build/a tree" / name / "disk").write_text(name)
        told.mends(lambda: made.make(print, print))
    for name in ("second", "a third"):
        assert (tmp_path / "build/a tree/states" / name / "disk").read_text() == name


@remedies(
    "sevsnp.store.oci_reference",
    "lower case, without tag, digest or user name; logins are taken from ~/.docker/config.json",
)
def test_a_malformed_reference(told: Told) -> None:
    for bad in ("oci://host.example/Cache", "oci://host.example/cache:1", "oci://me@host.example/cache"):
        told.instead(lambda bad=bad: parse_reference(bad), lambda: parse_reference("oci://host.example/cache"))  # type: ignore[misc]


@remedies(
    "sevsnp.settings.resolved",
    "give another key, in the environment or in a file, because this one is no longer secret: {}_FILE=FILE",
)
def test_a_key_on_the_command_line(told: Told, clone: Path) -> None:
    resolve({}, {}, clone / "config.yaml")
    told.instead(lambda: told.doitw("list", "LUKS_KEY=secret"), lambda: told.shell("LUKS_KEY=other ./doitw list"))
    (clone / "my.key").write_text("another secret")
    told.instead(lambda: told.doitw("list", "LUKS_KEY=secret"), lambda: told.doitw("list", "LUKS_KEY_FILE=my.key"))


@remedies("sevsnp.pipeline.commands", "info: expected the name of one task, {}; see: ./doitw list")
def test_info_without_a_task(told: Told, clone: Path) -> None:
    told.hint(lambda: told.doitw("info"))
    names = [line.split()[0] for line in told.shell("./doitw list").stdout.splitlines() if line]
    assert "build_tools" in names and told.doitw("info", "build_tools").returncode in (0, 1)
    assert "expected the name" not in told.doitw("info", "build_tools").stdout


@remedies("sevsnp.packages.tree", "remove it: rm {}")
def test_a_file_where_a_tree_belongs(told: Told, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "the target").touch()
    told.mends(lambda: replace_tree(tmp_path / "new", tmp_path / "the target", tmp_path))


@pytest.mark.full
@remedies("sevsnp.pipeline.welcome", WELCOME)
def test_the_welcome(told: Told, clone: Path) -> None:
    """The output of ./doitw without a task: each line names an existing task, or is a command that works."""
    said = told.doitw().stdout
    assert WELCOME in said
    told.seen.add(WELCOME)
    for task in re.findall(r"^  ./doitw (\w+) ", said, re.MULTILINE):
        words = [task] if task in ("list", "settings") else ["help", "e2e"] if task == "help" else ["info", task]
        done = told.doitw(*words)
        assert done.returncode in (0, 1) and "ERROR" not in done.stdout, done.stdout


@remedies("sevsnp.store.making", "run the command again")
def test_an_input_that_changes_meanwhile(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    makers.begin()
    with makers.run():
        makers.meanwhile.append(Path("source"))
        told.mended(lambda: makers.artefact().make(print, print), lambda: None)
    assert Path("build/output").read_bytes() == b"OTHER"
