# SPDX-License-Identifier: Apache-2.0
"""AMD's roots cannot be extended by an option, a variable, a configuration, a policy or a field of the evidence."""

import argparse
import ast
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from sevsnp.attestation import verifier
from sevsnp.attestation.chain import pem
from sevsnp.commands import verify_report as cli
from sevsnp.errors import UserError
from sevsnp.vm_config.config import render_vm_config
from tests.support.evidence import REPORT_DATA, ROOT, expected
from tests.support.evidence import config as vm_config
from tests.support.hierarchy import Hierarchy

FORGED = Hierarchy()  # AMD's names, with keys of one's own
# Every variable that the verifier reads: where its cache is, and how wide the terminal is.
VARIABLES = {("kds_cache.py", "XDG_CACHE_HOME"), ("arguments.py", "COLUMNS")}


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line with which FORGED's evidence would be accepted, if its root were AMD's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "report").write_bytes(FORGED.report())
    (tmp_path / "certs").mkdir()
    for name, one in (("vcek", FORGED.certificate), ("ask", FORGED.ask), ("ark", FORGED.ark)):
        (tmp_path / "certs" / f"{name}.pem").write_bytes(one.public_bytes(Encoding.PEM))
    (tmp_path / "chain.pem").write_bytes(pem([FORGED.certificate, FORGED.ask, FORGED.ark]))
    made = vm_config(platform="snp", platform_info_required=0, platform_info_forbidden=0)
    made = dataclasses.replace(made, source=tmp_path / "vm.toml")
    made.source.write_text(render_vm_config(made))
    return [
        *("--input", f"{tmp_path}/report", "--vm_definition", f"{tmp_path}/vm.toml", "--offline"),
        *("--certs", f"{tmp_path}/certs", "--report-data", REPORT_DATA.hex(), "--at", "2026-06-01"),
    ]


def test_control_with_another_pin_the_evidence_is_accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: only the pin refuses this evidence."""
    assert cli.main(words) == 2
    monkeypatch.setattr(verifier, "_AMD", dataclasses.replace(verifier._AMD, pins=FORGED.root.pins))
    assert cli.main(words) == 0


def options() -> Iterator[argparse.Action]:
    yield from cli.command_line()._actions


@pytest.mark.parametrize("option", [one.option_strings[0] for one in options()])
def test_no_option_adds_a_root(
    option: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every option, with the forged root in every form that the option could accept."""
    monkeypatch.chdir(tmp_path)  # some options write a file of that name
    (action,) = (one for one in options() if option in one.option_strings)
    policy = tmp_path / "policy.toml"
    policy.write_text('profile = "default"\n')
    ark = FORGED.ark.fingerprint(hashes.SHA256()).hex()
    values = [
        tmp_path / "chain.pem",
        tmp_path / "certs",
        tmp_path / "certs" / "ark.pem",
        policy,
        ark,
        f"file://{tmp_path}",
    ]
    for value in values if action.nargs != 0 else [None]:
        try:
            code = cli.main([*words, option, *([] if value is None else [str(value)])])
        except SystemExit as ended:
            code = ended.code  # type: ignore[assignment]
        shown = capsys.readouterr().out
        assert code in (2, 3, 64) or (option in ("-h", "--help") and code == 0 and "ACCEPTED" not in shown)


def test_the_verifier_reads_no_environment_variable_about_roots() -> None:
    """All reads of the environment in the verifier's sources; none of these variables is about roots."""
    names, found = set(), set()
    for path in sorted((ROOT / "sevsnp").glob("*/*.py")):
        if path.parent.name not in ("attestation", "commands"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb", "getenvb"):
                names.add(path.name)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.environ.get":
                found.add((path.name, ast.literal_eval(node.args[0])))
    assert found == VARIABLES and names == {name for name, _ in VARIABLES}


def test_no_environment_variable_adds_a_root(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: set[str] = set()

    class Watched(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

        def __getitem__(self, key: str) -> str:
            read.add(key)
            return super().__getitem__(key)

    monkeypatch.setattr(os, "environ", Watched(os.environ))
    assert cli.main(words) == 2
    for name in (*read, "SEVSNP_ROOT", "TRUST_ROOT", "ARK", "SSL_CERT_FILE", "PLATFORM", "EMULATED_ROOT"):
        if name != "XDG_CACHE_HOME":
            os.environ[name] = str(tmp_path / "chain.pem")
    assert cli.main(words) == 2


@pytest.mark.parametrize("key", ["ark", "root", "roots", "pins", "trust_root", "trust_domain", "emulated"])
def test_no_configuration_adds_a_root(key: str, words: list[str], tmp_path: Path) -> None:
    """A policy or a VM config with such a key is refused because of the key."""
    with pytest.raises(UserError, match="no such field"):
        expected(policy={key: [f"{tmp_path}/chain.pem"]})
    vm = tmp_path / "vm.toml"
    honest = vm.read_text()
    for table in ("", "[launch]\n", "[reference]\n", "[policy]\n"):
        line = f'{key} = "{tmp_path}/chain.pem"\n'
        vm.write_text(honest.replace(table, table + line, 1) if table else line + honest)
        assert cli.main(words) == 64
    vm.write_text(honest)
    assert cli.main(words) == 2  # control: it was the key


def test_no_certificate_of_the_evidence_becomes_a_root(words: list[str], tmp_path: Path) -> None:
    """The forged root and its chain, in every place where evidence can contain certificates."""
    for more in (["--certificates", f"{tmp_path}/chain.pem"], ["--certificates", f"{tmp_path}/certs/ark.pem"] * 2):
        assert cli.main([*words, *more]) == 2
    cache = tmp_path / "cache" / "openend2e-sevsnp" / "kds"
    cache.mkdir(mode=0o700, parents=True)
    (cache / "vcek-Genoa.pem").write_bytes(pem([FORGED.ask, FORGED.ark]))
    assert cli.main(words) == 2
    (tmp_path / "certs" / "ark.pem").unlink()
    assert cli.main(words) == 3  # nobody else's certificates are taken for AMD's, so none is at hand
