# SPDX-License-Identifier: Apache-2.0
"""Hints of the verifier: policies, reports, what an ID block is for, the minimum TCB version."""

import argparse
import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sevsnp.attestation import Appraisal, Policy, appraise, verifier
from sevsnp.attestation.authentication import Nobody
from sevsnp.attestation.ear import load_key
from sevsnp.attestation.policy import make_policy
from sevsnp.attestation.profiles import DEFAULT
from sevsnp.commands import measure, tcb_floors
from sevsnp.commands import verify_report as cli
from sevsnp.emulation.verify import verify_emulated
from sevsnp.measurement.id_block import IdBlock, check_identity, make_identity
from sevsnp.measurement.launch_digest import launch_digest_of
from sevsnp.measurement.make_config import _minimum_tcb
from sevsnp.measurement.ovmf import check_size
from sevsnp.vm_config.config import read_vm_config
from tests.conftest import Built
from tests.support.evidence import MEASUREMENT, REPORT_DATA, config, evidence, expected, firmware, now, root
from tests.support.hierarchy import NOW
from tests.support.table import Told, remedies
from tests.unit.attestation import test_floors_file as floors
from tests.unit.attestation.test_forged_reports import GENOA, outcome

HERE = Path("policy.toml")


def policy(document: dict[str, Any], **changes: Any) -> object:
    return make_policy(document, HERE, config(**changes), REPORT_DATA)


def own() -> dict[str, Any]:
    return copy.deepcopy(dict(DEFAULT))


@remedies(
    "sevsnp.attestation.policy",
    "say {}",
    "write true, false or { any = … }",
    "make the VM config again: {} MIN_TCB=PARTS",
)
def test_fields_that_a_policy_lacks(told: Told) -> None:
    without, bits = own(), own()
    del without["report_id"]
    del bits["platform_info"]["smt_en"]
    told.instead(lambda: policy(without), lambda: policy({**without, "report_id": {"any": "for a test"}}))
    told.instead(
        lambda: policy(bits),
        lambda: policy({**bits, "platform_info": {**bits["platform_info"], "smt_en": {"any": "a test"}}}),
    )
    demanded = {**own(), "reported_tcb": "vm-config"}
    hint = told.hint(lambda: policy(demanded, minimum_tcb="any"))
    assert hint.partition(": ")[2].startswith("./doitw setup_verity MIN_TCB=")
    # What the setup task makes of it.
    policy(demanded, minimum_tcb=_minimum_tcb("bootloader:3,snp:8", "Genoa"))


@remedies("sevsnp.attestation.appraisal", "{} MIN_TCB={}")
def test_a_minimum_tcb_version_that_a_report_meets(told: Told) -> None:
    refused = outcome(by=GENOA, minimum_tcb=None)
    told.seen.add("{} MIN_TCB={}")
    command, _, floor = refused.remedy.rpartition(" MIN_TCB=")
    assert command == "./doitw setup_verity"
    assert outcome(by=GENOA, minimum_tcb=_minimum_tcb(floor, "Genoa")).accepted


@remedies("sevsnp.attestation.appraisal", "--min-tcb {}")
def test_a_minimum_tcb_version_that_a_report_meets_without_a_vm_config(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "_AMD", GENOA.root)
    one = GENOA.evidence()

    def judged(**stated: Any) -> Appraisal:
        policy = Policy.of(measurement=MEASUREMENT, report_data=REPORT_DATA, **stated)
        return appraise(one.report, policy, certificates=one.certificates, at=NOW, endorser=Nobody())

    told.seen.add("--min-tcb {}")
    option, _, floor = judged().remedy.partition(" ")
    assert option == "--min-tcb" and judged(minimum_tcb=cli._minimum_tcb(floor)).accepted


@remedies(
    "sevsnp.commands.verify_report",
    "give its launch digest or its VM config: --measurement HEX, or --vm_definition FILE",
)
def test_no_launch_digest_and_no_vm_config(told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report").write_bytes(GENOA.report())
    line = ["--input", f"{tmp_path}/report", "--offline", "--report-data", REPORT_DATA.hex()]
    assert cli.main(line) == 64
    assert "--measurement HEX" in told.read(capsys.readouterr().err)
    assert cli.main([*line, "--measurement", "ab" * 48]) in (cli.REFUSED, cli.UNDECIDED)


@remedies(
    "sevsnp.attestation.policy",
    "give it: --nonce HEX with every --host-key FILE of the guest, or --report-data HEX",
)
def test_no_report_data(told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report").write_bytes(GENOA.report())
    line = ["--input", f"{tmp_path}/report", "--offline", "--measurement", "ab" * 48, "--min-tcb", "any"]
    assert cli.main(line) == 64
    assert "--report-data HEX" in told.read(capsys.readouterr().err)
    assert cli.main([*line, "--report-data", REPORT_DATA.hex()]) in (cli.REFUSED, cli.UNDECIDED)


@remedies("sevsnp.commands.measure", "say why this firmware is trusted: --firmware-reason TEXT")
def test_a_firmware_without_a_reason(told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.fd").write_bytes(firmware())
    line = ["--mode", "firmware-hash", "--firmware", f"{tmp_path}/other.fd"]
    assert measure.main(line) == 64
    assert "--firmware-reason TEXT" in told.read(capsys.readouterr().err)
    assert measure.main([*line, "--firmware-reason", "a test"]) == 0


@remedies(
    "sevsnp.attestation.ear", "make one: (umask 077 && openssl ecparam -name secp384r1 -genkey -noout -out ear-key.pem)"
)
def test_a_key_of_the_wrong_kind_for_an_ear(told: Told) -> None:
    (told.cwd / "rsa.pem").write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (told.cwd / "rsa.pem").chmod(0o600)
    hint = told.hint(lambda: load_key(told.cwd / "rsa.pem"))
    subprocess.run(["sh", "-c", hint.partition(": ")[2]], cwd=told.cwd, check=True, timeout=60)
    assert load_key(told.cwd / "ear-key.pem").curve.name == "secp384r1"


@remedies(
    "sevsnp.emulation.verify", "give the ark.pem that the software secure processor wrote when the guest was started"
)
def test_a_root_file_without_a_certificate(told: Told, tmp_path: Path) -> None:
    (tmp_path / "ark.pem").write_text("no certificate")
    for path in (tmp_path / "ark.pem", tmp_path / "nonsuch"):
        told.instead(
            lambda path=path: verify_emulated(evidence(), expected(), now(), path),  # type: ignore[misc]
            lambda: verify_emulated(evidence(), expected(), now(), root()),
        )


@remedies(
    "sevsnp.measurement.id_block", "make a new one for this VM config: ./doitw idblock ID_KEY=FILE AUTHOR_KEY=FILE"
)
def test_an_id_block_of_another_guest(told: Told) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())

    def check(made_for: bytes) -> None:
        block = IdBlock(made_for, bytes(16), bytes(16), 0, 0x30000)
        check_identity(make_identity(block, key, key), bytes(48), 0x30000)

    # That the command makes one is shown with an ID block that is gone.
    told.instead(lambda: check(b"x" * 48), lambda: check(bytes(48)))


@remedies("sevsnp.measurement.ovmf", "give the firmware of OvmfPkg/AmdSev (Debian package ovmf-amdsev: OVMF.amdsev.fd)")
def test_a_firmware_of_a_wrong_size(told: Told, checkout: Built) -> None:
    stock = checkout.build / "snp-release" / "usr/share/ovmf/OVMF.amdsev.fd"
    told.instead(lambda: check_size(17, "x.fd"), lambda: check_size(stock.stat().st_size, "OVMF.amdsev.fd"))


@pytest.mark.full
@remedies(
    "sevsnp.measurement.launch_digest",
    "the file changed after the VM config was made; make both again: {}",
)
def test_a_file_that_changed_after_the_vm_config_was_made(told: Told, checkout: Built) -> None:
    path = checkout.build / "verity" / "vm-config-verity.toml"
    cmdline = checkout.build / "verity" / "cmdline"
    cmdline.unlink()
    cmdline.write_text("other")
    told.mends(lambda: launch_digest_of(read_vm_config(path).launch))


@remedies("sevsnp.commands.verify_report", "give every host key of the guest: --host-key FILE")
def test_a_nonce_without_host_keys(told: Told, tmp_path: Path) -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl root@guest\n"
    (tmp_path / "key.pub").write_text(line)

    def bound(*files: Path) -> None:
        cli._report_data(argparse.Namespace(host_key=files, nonce="00" * 32, report_data=None))

    told.instead(bound, lambda: bound(tmp_path / "key.pub"))


@remedies(
    "sevsnp.commands.tcb_floors",
    "if you signed it with another key, give that one's public key: --previous-key FILE",
)
def test_a_previous_edition_by_another_key(
    told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "_AMD", floors.GENOA.root)
    before, key = floors.write(tmp_path), floors.owner(tmp_path, "Ed25519")
    line = [*floors.command(tmp_path), "--previous", str(before), "--key", str(key)]
    assert tcb_floors.main(line) == 64
    option = told.read(capsys.readouterr().err).rpartition(": ")[2].split()[0]
    assert tcb_floors.main([*line, option, str(tmp_path / "owner.pub.pem")]) == 0
