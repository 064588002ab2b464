# SPDX-License-Identifier: Apache-2.0
"""check_host and prepare_host as a user calls them: their options reach the library, and the exit status is right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.host_setup.recorded import RECORD, read_host
from tests.conftest import copy_project
from tests.support.hosts import HOSTS
from tests.support.waiting import NET


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "project"
    copy_project(path)
    return path


def doit(project: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "doit", *words],
        cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=NET, check=False,
    )  # fmt: skip


def verdict(project: Path) -> dict[str, object]:
    found = json.loads((project / "build/check_host.json").read_text())
    assert isinstance(found, dict)
    return found


def test_a_good_and_a_bad_host(project: Path) -> None:
    good = doit(project, "check_host", "--from", str(HOSTS / "good-genoa"))
    assert good.returncode == 0 and "SEV-SNP guests can start" in good.stdout, good.stderr
    assert verdict(project)["can_start_snp_guests"] is True
    bad = doit(project, "check_host", f"--from={HOSTS / 'amdsev-81'}")
    assert bad.returncode == 1 and "firmware: 0.31 build 43" in bad.stdout
    assert "Traceback" not in bad.stdout + bad.stderr and verdict(project)["cause"] == "firmware"
    assert not (project / "build/host_record").exists()


def test_check_host_records_this_machine(project: Path) -> None:
    done = doit(project, "check_host")
    assert done.returncode == (0 if verdict(project)["can_start_snp_guests"] else 1)
    assert (project / "build/host_record" / RECORD).is_file()
    assert read_host(project / "build/host_record").texts


def test_a_directory_without_a_recorded_host_is_refused(project: Path) -> None:
    done = doit(project, "check_host", "--from", "docs")
    assert done.returncode == 1 and "record.json" in done.stdout and "Traceback" not in done.stdout


def test_prepare_host_changes_nothing_without_consent(project: Path) -> None:
    """There is no terminal here. On an unknown machine, or one that is ready, it has no question."""
    plain = doit(project, "prepare_host")
    said = plain.stdout + plain.stderr
    assert any(words in said for words in ("no terminal to ask on", "not known to prepare_host", "nothing to change"))
    dry = doit(project, "prepare_host", "--dry-run")
    assert any(words in dry.stdout + dry.stderr for words in ("a dry run", "not known", "nothing to change"))
    undo = doit(project, "prepare_host", "--undo", "--dry-run")
    assert undo.returncode == 0 and any(words in undo.stdout for words in ("nothing to undo", "a dry run"))
