# SPDX-License-Identifier: Apache-2.0
"""A digest that must never be accepted, pasted where an expected one belongs: the signed manifest's list refuses it.

In the place of AMD's keys stands a hierarchy of the tests' own, so that the production verifier runs: what is measured
is the emulated guest, on hardware.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sevsnp.attestation import verifier
from sevsnp.commands import verify_report as cli
from sevsnp.commands import verify_report_emulated as emulated_cli
from sevsnp.errors import UserError
from sevsnp.firmware.known import REFUSED
from sevsnp.owner.attestation import never_accepted
from sevsnp.vm_config.config import File, VmConfig, render_vm_config
from tests.conftest import Built
from tests.support.evidence import REPORT_DATA, psp, root
from tests.support.hierarchy import LEVEL, NOW, Hierarchy
from tests.support.released import CONFIG, Released, release, replace
from tests.unit.keys.test_signature import make_key, needs_openssl, public_half

pytestmark = needs_openssl
GENOA = Hierarchy()


@pytest.fixture(scope="module")
def released(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Released:
    return release(built, tmp_path_factory.mktemp("released"))


@pytest.fixture(autouse=True)
def hardware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verifier, "_AMD", GENOA.root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def signed_list(released: Released) -> list[str]:
    return ["--manifest", str(released.manifest), "--manifest-key", str(released.public)]


@dataclasses.dataclass
class Verifier:
    """verify_report for a guest with the measurement ``digest`` on hardware, and what it printed."""

    config: VmConfig
    digest: bytes
    directory: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *more: str, policy: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        launch = self.config.launch
        report = GENOA.report(policy=launch.guest_policy, host_data=launch.host_data, measurement=self.digest)
        (self.directory / "report").write_bytes(report)
        chain = b"".join(one.public_bytes(Encoding.PEM) for one in (GENOA.certificate, GENOA.ask, GENOA.ark))
        (self.directory / "chain").write_bytes(chain)
        reference = dataclasses.replace(self.config.require_reference(), minimum_tcb=LEVEL)
        source = self.directory / "vm.toml"
        made = dataclasses.replace(self.config, source=source, reference=reference, policy=policy or self.config.policy)
        source.write_text(render_vm_config(made))
        code = cli.main([
            "--input", f"{self.directory}/report", "--certificates", f"{self.directory}/chain", "--offline", "--json",
            "--at", f"{NOW:%FT%TZ}", "--report-data", REPORT_DATA.hex(), "--vm_definition", str(source), *more,
        ])  # fmt: skip
        out = self.capsys.readouterr().out
        return code, json.loads(out) if out else {}


@pytest.fixture
def emulated_digest(released: Released) -> bytes:
    return released.built.config("emulated").require_reference().launch_digest


def refused(result: tuple[int, dict[str, Any]]) -> str:
    code, document = result
    assert (code, document["reason"]) == (cli.REFUSED, "never-accepted"), document["message"]
    return str(document["message"])


def test_an_emulated_launch_digest_is_refused_as_the_expected_one(
    released: Released, emulated_digest: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    production = released.built.config("snp")
    pasted = dataclasses.replace(production.require_reference(), launch_digest=emulated_digest)
    run = Verifier(dataclasses.replace(production, reference=pasted), emulated_digest, tmp_path, capsys)
    assert run()[0] == cli.ACCEPTED  # control: without the list there is nothing wrong with it
    assert f"the emulated guest of {CONFIG['emulated']} with 1 vCPU" in refused(run(*signed_list(released)))
    # Every digest of an emulated guest is listed, for other numbers of vCPUs too, and of both workflows.
    document = released.document()
    emulated = [entry for entry in document["launch"].values() if not entry["production"]]
    wanted = {item["launch_digest"] for entry in emulated for item in entry["digests"]}
    assert len(emulated) == 2 and len(wanted) == 14 and wanted == set(document["refused"]["launch_digests"])
    assert document["refused"]["firmware"] == REFUSED


def test_an_emulated_launch_digest_is_refused_in_a_policy(
    released: Released, emulated_digest: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    production = released.built.config("snp")
    own = production.require_reference().launch_digest
    policies: list[dict[str, Any]] = [
        {"profile": "default", "measurement": ["vm-config", emulated_digest.hex()]},
        {"profile": "default", "measurement": {"any": "whatever runs there"}},
    ]
    for policy in policies:
        run = Verifier(production, emulated_digest, tmp_path, capsys)
        assert run(policy=policy)[0] == cli.ACCEPTED  # control
        refused(run(*signed_list(released), policy=policy))
    # It need not be what the guest measured as: a policy that would take it is refused.
    run = Verifier(production, own, tmp_path, capsys)
    refused(run(*signed_list(released), policy=policies[0]))
    # And what is not listed is accepted as before.
    code, document = run(*signed_list(released))
    assert code == cli.ACCEPTED
    (check,) = (one for one in document["checks"] if one["name"] == "never-accepted")
    assert check["outcome"] == "passed"


def test_a_firmware_on_the_list_is_refused(
    released: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A release lists more firmware than this verifier knows by itself; the owner's reason does not help."""
    listed = "5" * 64
    production = released.built.config("snp")
    launch = dataclasses.replace(
        production.launch, firmware=File(Path("/nonexistent/OVMF.fd"), listed), firmware_reason="a vendor's"
    )
    config = dataclasses.replace(production, launch=launch)
    run = Verifier(config, config.require_reference().launch_digest, tmp_path, capsys)
    assert run(*signed_list(released))[0] == cli.ACCEPTED  # control: the list does not have it
    with released.kept(released.manifest, released.signature):
        document = released.document()
        document["refused"]["firmware"][listed] = "an image that starts more than the hashed files"
        released.resign(document)
        assert "an image that starts more" in refused(run(*signed_list(released)))
        assert "refused: firmware." in released.refusal(released.public)  # this source does not know it


@pytest.mark.full
def test_a_release_cannot_list_its_own_artefacts(released: Released) -> None:
    with released.kept(released.manifest, released.signature):
        for kind, digest, said in (
            ("launch_digests", released.built.config("snp").require_reference().launch_digest.hex(), "launch digest"),
            ("firmware", released.built.config("snp").launch.firmware.sha256, "firmware"),
        ):
            document = released.document()
            document["refused"][kind][digest] = "a mistake"
            released.resign(document)
            found = released.refusal(released.public)
            assert re.search(rf"{CONFIG['snp']}: its {said}.* is never to be accepted: a mistake", found)
    assert released.refusal(released.public) == ""


def test_a_list_is_used_only_with_a_valid_signature(
    released: Released, emulated_digest: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Verifier(released.built.config("snp"), emulated_digest, tmp_path, capsys)
    stranger = public_half(make_key(tmp_path))
    for words in (
        ["--manifest", str(released.manifest)],
        ["--manifest-key", str(released.public)],
        ["--manifest", str(released.manifest), "--manifest-key", str(stranger)],
        ["--manifest", f"{tmp_path}/none.json", "--manifest-key", str(released.public)],
    ):
        assert run(*words)[0] == 64
    with released.kept(released.manifest, released.signature):
        # One that was emptied on its way: nothing in it is looked at.
        document = released.document()
        document["refused"]["launch_digests"] = {}
        replace(released.manifest, json.dumps(document).encode())
        assert run(*signed_list(released))[0] == 64
        released.signature.unlink()
        assert run(*signed_list(released))[0] == 64
    # As the attest tasks are given it.
    never = never_accepted(released.manifest, released.public)
    assert never and emulated_digest.hex() in never.launch_digests
    assert never_accepted(None, released.public) is None
    with pytest.raises(UserError, match="MANIFEST_PUBLIC_KEY: not given"):
        never_accepted(released.manifest, None)
    with pytest.raises(UserError, match="is not a signature"):
        never_accepted(released.manifest, stranger)


def test_control_the_emulated_verifier_accepts_an_emulated_guest(
    released: Released, emulated_digest: bytes, tmp_path: Path
) -> None:
    config = released.built.config("emulated")
    report = psp().report(REPORT_DATA, launch=config.launch, measurement=emulated_digest)
    (tmp_path / "report").write_bytes(report)
    (tmp_path / "table").write_bytes(psp().certificate_table())
    words = ["--input", f"{tmp_path}/report", "--certificates", f"{tmp_path}/table", "--root", str(root())]
    words += ["--vm_definition", str(config.source), "--report-data", REPORT_DATA.hex(), *signed_list(released)]
    assert emulated_cli.main(words) == 10
