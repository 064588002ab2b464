# SPDX-License-Identifier: Apache-2.0
"""check_host: its table, its JSON document, and the hosts for which it fails."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.host_setup.check import check_host
from sevsnp.host_setup.judge import judge
from sevsnp.host_setup.recorded import CMDLINE, RELEASE, read_host
from tests.support.hosts import GOOD, HOSTS


def check(tree: Path, tmp_path: Path) -> dict[str, Any]:
    """The document, whether the check fails or not."""
    output = tmp_path / "check_host.json"
    try:
        check_host(tree=str(tree), record=tmp_path / "record", output=output, qemus=[])
    finally:
        assert not (tmp_path / "record").exists()  # this machine is not looked at
        found = json.loads(output.read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", GOOD)
def test_a_good_host(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(HOSTS / name, tmp_path)
    assert (found["format"], found["can_start_snp_guests"], found["cause"]) == (1, True, None)
    assert "SEV-SNP guests can start on this host" in capsys.readouterr().out


def test_a_bad_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        check(HOSTS / "amdsev-88", tmp_path)
    assert "iommu: iommu=pt on the kernel command line" in caught.value.message
    assert caught.value.hint.startswith("take iommu=pt out of the kernel command line, and reboot; then ")
    shown = capsys.readouterr().out
    lines = {line.split()[1]: line for line in shown.splitlines() if line[:1] in "✓✗?·" and line.strip()}
    assert lines["iommu"].startswith("✗") and lines["rmp"].startswith("?") and lines["asids"].startswith("✓")
    assert "follows from iommu" in lines["kvm_amd.sev_snp"]
    assert "can start on this host" not in shown


def test_the_document(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        check(HOSTS / "amdsev-137", tmp_path)
    found = json.loads((tmp_path / "check_host.json").read_text())
    assert set(found) == {"format", "can_start_snp_guests", "cause", "findings"}
    assert (found["can_start_snp_guests"], found["cause"]) == (False, "asids")
    keys = {"name", "status", "found", "wanted", "mend", "because"}
    assert all(set(one) == keys and all(isinstance(text, str) for text in one.values()) for one in found["findings"])
    assert {one["status"] for one in found["findings"]} <= {"ok", "failed", "unknown", "note"}
    by_name = {one["name"]: one for one in found["findings"]}
    assert len(by_name) == len(found["findings"]) and by_name["kvm_amd.sev_snp"]["because"] == "asids"


def test_the_docs_name_every_finding() -> None:
    text = (HOSTS.parents[2] / "docs/hardware.md").read_text()
    table = text.partition("| name | what |")[2].partition("\n\n")[0]
    named = re.findall(r"`([^`]+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.count("|") > 1))
    found = {finding.name for path in HOSTS.glob("*/") for finding in judge(read_host(path)).findings}
    assert set(named) == found and len(named) == len(found)


def test_an_unknown_value_does_not_pass(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(HOSTS / "good-genoa", tree)
    (tree / RELEASE).unlink()
    with pytest.raises(UserError, match="may not be able to start SEV-SNP guests: kernel: not recorded") as caught:
        check(tree, tmp_path)
    assert "see: uname -r" in caught.value.hint


def test_control_characters_of_the_host_are_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(HOSTS / "good-genoa", tree)
    (tree / RELEASE).write_text("6.1.0\x1b[2J[red]x\n")
    (tree / CMDLINE).write_text("quiet\n")
    with pytest.raises(UserError) as caught:
        check(tree, tmp_path)
    shown = capsys.readouterr().out + str(caught.value)
    assert "\x1b" not in shown and "6.1.0?[2J[red]x" in shown


def test_a_record_of_this_machine_gives_the_same_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The machine is recorded and judged; the record, judged again, gives the same verdict."""
    arguments = {"record": tmp_path / "record", "qemus": [Path("qemu-system-x86_64")]}
    outcomes = []
    for tree, name in (("", "first"), (str(tmp_path / "record"), "second")):
        try:
            check_host(tree=tree, output=tmp_path / name, **arguments)  # type: ignore[arg-type]
            outcomes.append("")
        except UserError as error:
            outcomes.append(error.message)
    assert outcomes[0] == outcomes[1] and (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    found = json.loads((tmp_path / "first").read_text())
    assert found["can_start_snp_guests"] is (outcomes[0] == "")
    flags = Path("/proc/cpuinfo").read_text()
    if " hypervisor" in flags or "AuthenticAMD" not in flags:
        assert found["cause"] == "processor"
