"""The two commands: exit codes, and what they take."""

import dataclasses
import json
from pathlib import Path

import pytest

from sevsnp.attestation import cli
from sevsnp.attestation.report_data import read_public_key, ssh_report_data
from sevsnp.emulation import cli as emulated_cli
from sevsnp.vm.config import render_vm_config
from tests.unit.evidence import REPORT_DATA, VECTORS, evidence, needs_vectors, psp, root
from tests.unit.evidence import config as vm_config
from tests.unit.test_real_reports import REAL, real_config


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "report").write_bytes(evidence().report)
    (tmp_path / "table").write_bytes(psp().certificate_table())
    config = dataclasses.replace(vm_config(), source=tmp_path / "vm.toml")
    config.source.write_text(render_vm_config(config))
    return [
        *("--report", f"{tmp_path}/report"),
        *("--certificates", f"{tmp_path}/table"),
        *("--vm-config", str(config.source)),
    ]


BOUND = ["--report-data", REPORT_DATA.hex()]


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The network is none of these tests' business: the cache is empty, and nothing listens where AMD's service is."""
    from sevsnp.attestation import kds

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kds, "KDS", "http://127.0.0.1:9")


def test_exit_codes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    trusted = ["--root", str(root()), "--json"]
    assert emulated_cli.main([*words, *BOUND, *trusted]) == 10
    shown = capsys.readouterr()
    assert json.loads(shown.out)["trust_domain"] == "emulated" and "EMULATED – NOT CONFIDENTIAL" in shown.err
    assert emulated_cli.main([*words, "--report-data", "11" * 64, *trusted]) == 2
    assert json.loads(capsys.readouterr().out)["reason"] == "report-data"
    assert cli.main([*words, *BOUND, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["reason"] == "unknown-root"
    assert cli.main([*words, *BOUND]) == 2
    assert "REFUSED (unknown-root)" in capsys.readouterr().out
    for wrong in ("00", "zz" * 64, "00" * 64):
        assert cli.main([*words, "--report-data", wrong]) == 64
    assert cli.main(["--report", "/nowhere", "--vm-config", words[-1], *BOUND]) == 64
    assert cli.main(words) == 64 and "report_data: missing" in capsys.readouterr().err
    for arguments in ([*words, *BOUND, "--root", str(root())], [*words, *BOUND, "--nonce", "00" * 32], []):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 64


@needs_vectors
def test_exit_code_0_is_for_hardware(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, wanted, report_data = real_config(*REAL[0][:4])
    (tmp_path / "report").write_bytes(one.report)
    config = dataclasses.replace(wanted, source=tmp_path / "vm.toml")
    config.source.write_text(render_vm_config(config))
    arguments = ["--report", f"{tmp_path}/report", "--vm-config", str(config.source), "--json"]
    for path in (VECTORS / "milan-v2" / "vcek.der", VECTORS / "amd-chains" / "ask_ark_milan.pem"):
        arguments += ["--certificates", str(path)]
    bound = ["--report-data", report_data.hex()]
    assert cli.main([*arguments, *bound]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["trust_domain"], document["accepted"]) == ("amd", True)
    assert emulated_cli.main([*arguments, *bound, "--root", str(root())]) == 2


def test_nonce_and_host_keys(words: list[str], tmp_path: Path) -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl root@guest\n"
    (tmp_path / "key.pub").write_text(line)
    bound = ssh_report_data(b"n" * 32, [read_public_key(line)])
    (tmp_path / "report").write_bytes(evidence(report_data=bound).report)
    options = [*words, "--root", str(root()), "--nonce", (b"n" * 32).hex()]
    assert emulated_cli.main([*options, "--host-key", f"{tmp_path}/key.pub"]) == 10
    assert emulated_cli.main([*words, "--root", str(root()), "--nonce", "00" * 32,
                              "--host-key", f"{tmp_path}/key.pub"]) == 2  # fmt: skip
    assert emulated_cli.main(options) == 64
    (tmp_path / "key.pub").write_text("ssh-ed25519 nonsense")
    assert emulated_cli.main([*options, "--host-key", f"{tmp_path}/key.pub"]) == 64
