# SPDX-License-Identifier: Apache-2.0
"""verify_report and verify_report_emulated: their exit codes and their options."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation.report_data import read_public_key, ssh_report_data
from sevsnp.commands import verify_report as cli
from sevsnp.commands import verify_report_emulated as emulated_cli
from sevsnp.commands.reference import commands
from sevsnp.vm_config.config import render_vm_config
from tests.support.evidence import REPORT_DATA, ROOT, config, evidence, real_data, root, write_evidence
from tests.support.fake_kds import FakeKds, pour, serving
from tests.unit.attestation.test_real_reports import REAL, real_config


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    config = write_evidence(tmp_path)
    return [
        *("--report", f"{tmp_path}/report"),
        *("--certificates", f"{tmp_path}/table"),
        *("--vm-config", str(config)),
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
    document = json.loads(capsys.readouterr().out)
    assert document["reason"] == "report-data"
    # A saved result says what it is of, accepted or not.
    for one in (json.loads(shown.out), document):
        assert (one["emulated"], one["confidential"], one["accepted"]) == (True, False, False)
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


def test_exit_code_0_is_for_hardware(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, wanted, report_data = real_config(*REAL[0][:4])
    (tmp_path / "report").write_bytes(one.report)
    config = dataclasses.replace(wanted, source=tmp_path / "vm.toml")
    config.source.write_text(render_vm_config(config))
    arguments = ["--report", f"{tmp_path}/report", "--vm-config", str(config.source), "--json"]
    for path in (real_data("milan-v2/vcek.der"), real_data("amd-chains/ask_ark_milan.pem")):
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
    # As ssh-keyscan and known_hosts have it: comments, the host's names before the key, one key for two names.
    for text in (f"# guest:22 SSH-2.0-OpenSSH_9.2\nguest {line}", f"\n[10.0.2.2]:2222,guest {line}guest2 {line}"):
        (tmp_path / "key.pub").write_text(text)
        assert emulated_cli.main([*options, "--host-key", f"{tmp_path}/key.pub"]) == 10
    for text in (f"@revoked guest {line}", f"@cert-authority * {line}", f"guest {line[12:]}", "guest ssh-ed25519 AAAA"):
        (tmp_path / "key.pub").write_text(text)
        assert emulated_cli.main([*options, "--host-key", f"{tmp_path}/key.pub"]) == 64
    (tmp_path / "key.pub").write_text("ssh-ed25519 nonsense")
    assert emulated_cli.main([*options, "--host-key", f"{tmp_path}/key.pub"]) == 64


@pytest.mark.parametrize(("command", "code"), [("verify_report", 2), ("verify_report_emulated", 10)])
def test_the_example_of_the_page_is_complete(
    command: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an emulated guest's files in their places, the example gets a verdict and is not refused as incomplete."""
    example = shlex.split(next(one.example for one in commands() if one.name == command))
    given = dict(zip(example[::2], example[1::2], strict=True))
    monkeypatch.chdir(tmp_path)
    for name in ("--input", "--vm_definition", "--host-key"):
        Path(given[name]).parent.mkdir(parents=True, exist_ok=True)
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl root@guest\n"
    Path(given["--host-key"]).write_text(line)
    bound = ssh_report_data(bytes.fromhex(given["--nonce"]), [read_public_key(line)])
    fits = dataclasses.replace(config(), source=tmp_path / given["--vm_definition"])
    fits.source.write_text(render_vm_config(fits))
    sent = evidence(report_data=bound)
    Path(given["--input"]).write_bytes(sent.report + sent.certificate_table)
    if "--root" in given:
        Path(given["--root"]).parent.mkdir(parents=True)
        Path(given["--root"]).write_bytes(root().read_bytes())
    main = emulated_cli.main if command == "verify_report_emulated" else cli.main
    assert main(example) == code
    assert main([word for pair in given.items() if pair[0] not in ("--nonce", "--host-key") for word in pair]) == 64


@pytest.fixture
def real_words(tmp_path: Path) -> list[str]:
    """A real report without certificates, and a VM config that agrees with it."""
    one, wanted, report_data = real_config(*REAL[0][:4])
    (tmp_path / "report").write_bytes(one.report)
    written = dataclasses.replace(wanted, source=tmp_path / "vm.toml")
    written.source.write_text(render_vm_config(written))
    return [
        *("--input", f"{tmp_path}/report", "--vm_definition", str(written.source)),
        *("--report-data", report_data.hex(), "--at", "2026-06-01T00:00Z"),
    ]


def kds_of_vectors() -> FakeKds:
    return FakeKds({
        "/vcek/v1/Milan/cert_chain": real_data("amd-chains/ask_ark_milan.pem").read_bytes(),
        "/vcek/v1/Milan/crl": 404,
        "/vcek/v1/Milan/": real_data("milan-v2/vcek.der").read_bytes(),
    })  # fmt: skip


def test_certificates_from_a_service_a_cache_and_a_directory(
    real_words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert cli.main([*real_words, "--offline"]) == 3
    assert "UNDECIDED" in capsys.readouterr().out
    with serving(kds_of_vectors()) as fake:
        assert cli.main([*real_words, "--kds", fake.url, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["accepted"], document["product"], document["signer"]) == (True, "Milan", "VCEK")
        hwid = document["chip_id"]
        assert f"/vcek/v1/Milan/{hwid}?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115" in fake.asked
    assert cli.main([*real_words, "--offline"]) == 0  # from the cache
    wrong = [*real_words[:5], "ab" * 64, *real_words[6:]]
    assert cli.main([*wrong, "--offline"]) == 2
    # A stricter policy in a file: no revocation list can be had, so nothing is decided.
    (tmp_path / "policy.toml").write_text('profile = "legacy-milan"\nrevocation = "required"\n')
    assert cli.main([*real_words, "--offline", "--policy", f"{tmp_path}/policy.toml"]) == 3
    (tmp_path / "policy.toml").write_text('profile = "default"\n')
    assert cli.main([*real_words, "--offline", "--policy", f"{tmp_path}/policy.toml"]) == 2
    page = tmp_path / "page.html"
    assert cli.main([*real_words, "--offline", "--html", str(page)]) == 0 and "Accepted" in page.read_text()
    capsys.readouterr()
    # The verdict is said even where the page cannot be written.
    assert cli.main([*real_words, "--offline", "--html", str(tmp_path)]) == 64
    told = capsys.readouterr()
    assert "ACCEPTED: " in told.out and told.err.startswith(f"{tmp_path}: Is a directory")


@pytest.mark.parametrize("answer", [b"<html>", 429, 404, b"\x30\x82", pour])
def test_a_hostile_service_causes_no_traceback(answer: Any, real_words: list[str], tmp_path: Path) -> None:
    """The whole command, started as a user starts it."""
    with serving(kds_of_vectors()) as fake:
        fake.answers["/vcek/v1/Milan/"] = answer
        script = (
            "import sys; from sevsnp.attestation import kds_http as kds; "
            "from sevsnp.commands import verify_report as cli; kds._LONGEST_WAIT = kds._FIRST_WAIT = 0.1;"
            "kds.Limits.__new__.__defaults__ = (2.0, 1.0, None); sys.exit(cli.main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *real_words, "--kds", fake.url],
            cwd=ROOT, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "fresh"), "NO_PROXY": "127.0.0.1"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr and "UNDECIDED (certificates)" in done.stdout
    assert not list((tmp_path / "fresh").rglob("vcek-*.der"))
