# SPDX-License-Identifier: Apache-2.0
"""`./doitw settings`: the present values, and the outputs that a change of a setting rebuilds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.settings.table import SETTINGS
from tests.conftest import PROJECT
from tests.support.matrix import ROWS
from tests.support.matrix_settings import SETTINGS as MATRIX


def doit(place: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name not in MATRIX}
    return subprocess.run(
        [sys.executable, "-m", "doit", "run", "--db-file", str(place / "doit.db"), *words],
        cwd=PROJECT,
        env={**inherited, "HOME": str(place), "COLUMNS": "110", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_all_settings_are_shown_with_the_source_of_their_value(tmp_path: Path) -> None:
    done = doit(tmp_path, "settings", "CPUS=3", "MIRROR=http://me:canary@mirror.example/debian", MEMORY="512M")
    assert (done.returncode, done.stderr) == (0, "")
    for setting in SETTINGS:
        assert f"\n  {setting.name}=" in done.stdout
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ") and line.split()}
    assert "[command line] vCPUs" in lines["CPUS=3"] and "[environment] " in lines["MEMORY=512M"]
    assert "[" not in lines["PRODUCT=Genoa"], "a default has no source"
    assert "canary" not in done.stdout and "MIRROR=http://…@mirror.example/debian" in done.stdout
    # A password may contain a slash.
    for words in (["settings"], ["settings", "CACHE"]):
        done = doit(tmp_path, *words, CACHE="oci://me:a/canary@registry.example/cache")
        assert "canary" not in done.stdout and "CACHE=oci://…@registry.example/cache" in done.stdout
    assert doit(tmp_path, "settings").stdout == doit(tmp_path, "settings", "CPUS=1").stdout.replace(
        "[command line] ", ""
    )


@pytest.mark.parametrize("word", ["CPUS", "cpus", "Cpus"])
def test_one_setting_is_shown_with_its_details(tmp_path: Path, word: str) -> None:
    done = doit(tmp_path, "settings", word, CPUS="2")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, lines[0]) == (0, "", "CPUS=2")
    rows = dict(
        re.split(r"  +", row.strip(), maxsplit=1) for row in re.sub(r"\n {17}", " ", done.stdout).splitlines()[3:9]
    )
    assert rows["expected"] == "a number of vCPUs from 1 to 255"
    assert (rows["default"], rows["present value"], rows["config.yaml"]) == ("1", "2, from environment", "cpus: 1")
    assert {"setup_verity", "setup_luks", "run_sev_snp"} <= {name.strip() for name in rows["read by"].split(",")}
    rebuilt = done.stdout.partition("A change of it rebuilds:\n")[2]
    own, _, later = rebuilt.partition("and, if their content changes")
    assert "  build/verity/vm-config-verity.toml\n" in own and "verity.img" not in own
    assert "build/host-bundle/run" in later
    assert "a change of it rebuilds nothing" in doit(tmp_path, "settings", "MEMORY").stdout


def test_a_misspelt_setting_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    done = doit(tmp_path, "settings", "CUPS")
    hint = "did you mean ./doitw settings CPUS? all settings: ./doitw settings"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"ERROR: CUPS: no such setting\n  {hint}\n")
    assert doit(tmp_path, "setings").stderr.endswith("did you mean ./doitw settings? all tasks: ./doitw list\n")


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    for words in (["settings"], ["settings", "LUKS_KEY"], ["settings", "luks_key"], ["settings", "LUKS_KEY_FILE"]):
        done = doit(tmp_path, *words, LUKS_KEY="canary")
        assert done.returncode == 0 and "canary" not in done.stdout + done.stderr
        assert "LUKS_KEY" in done.stdout


DECIDED = """
import json, os, sys
from pathlib import Path
import dodo
from sevsnp.pipeline.commands import List
from sevsnp.pipeline.settings_page import decided_by
from sevsnp.pipeline.tasks import Tasks
from sevsnp.project.graph import load
from sevsnp.settings.resolved import resolve
from sevsnp.settings.table import SETTINGS

tasks = Tasks(task for task, _ in load())
present = resolve({}, os.environ, Path("config.yaml"))
print(json.dumps({one.name: sorted(decided_by(List.guide, tasks, present, one)) for one in SETTINGS}))
print(json.dumps(sorted(tasks.made_after({"_verity_root"}))))
"""


def test_the_rebuilt_outputs_equal_those_of_the_matrix_of_edits(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in MATRIX}
    done = subprocess.run(
        [sys.executable, "-c", DECIDED],
        cwd=PROJECT,
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    decided, after = map(json.loads, done.stdout.splitlines())
    found = {name: set(tasks) & set(ROWS) for name, tasks in decided.items()}
    expected = {name: set(tasks) & set(ROWS) for name, (_, tasks) in MATRIX.items()}
    # A volume whose key was sent to an emulated guest is made anew for another platform; that in the matrix was not.
    expected["PLATFORM"] |= {"_luks_image"}
    assert found == expected
    assert {"_verity_cmdline", "_verity_config", "host_bundle"} <= set(after) and "_luks_config" not in after
