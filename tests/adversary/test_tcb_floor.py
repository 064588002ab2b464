# SPDX-License-Identifier: Apache-2.0
"""Without a minimum TCB version both workflows refuse the evidence of every chip, old or new, and no key is sent.

In the place of AMD's keys stands a hierarchy of the tests' own, so that the production verifier runs.
"""

import base64
import dataclasses
import json
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from sevsnp.attestation import appraisal, verifier
from sevsnp.attestation.authentication import Nobody
from sevsnp.attestation.outcome import REMEDY, Reason
from sevsnp.attestation.report_data import ssh_report_data
from sevsnp.errors import UserError
from sevsnp.keys.luks_key import Record
from sevsnp.keys.pairs import ensure_keys
from sevsnp.owner.attestation import attest_guest
from sevsnp.owner.client import NONCE_SIZE, REQUEST
from sevsnp.vm_config.config import Tcb, VmConfig, read_vm_config, render_vm_config
from tests.conftest import Built
from tests.support.copies import copy_built
from tests.support.evidence import REFERENCE, ROOT, launch
from tests.support.hierarchy import Hierarchy
from tests.support.key_guest import HOST_KEY
from tests.support.luks_owner import KEY, attest, keep, waiting
from tests.support.luks_volume import make_header
from tests.support.relay import listening

# Its certificate is valid for as long as anybody may run this; its microcode is as old as a chip's can be.
OLD = Hierarchy(tcb=Tcb(1, 0, 2, 3), leaf_days=(-30, 6900))


class Service(Nobody):
    """AMD's, which has this chip's certificates."""

    def known(self) -> list[x509.Certificate]:
        return [OLD.certificate, OLD.ask, OLD.ark]


@pytest.fixture(autouse=True)
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_AMD", OLD.root)
    monkeypatch.setattr("sevsnp.attestation.verifier.amd_service", lambda *_: Service())


def without_the_check(log: Any, policy: Any, root: Any) -> None:
    log.not_compared(Reason.TCB_FLOOR, "the verifier as it was")


def evidence(config: VmConfig, report_data: bytes) -> dict[str, object]:
    """What an honest guest of this VM config sends from such a chip."""
    report = OLD.report(
        report_data=report_data, measurement=config.require_reference().launch_digest,
        policy=config.launch.guest_policy, host_data=config.launch.host_data,
    )  # fmt: skip
    return {"report": base64.b64encode(report).decode(), "certificates": ""}


def attest_verity(built: Built, config: Path, output: Path) -> dict[str, Any]:
    """`attest_verity` for a guest on the chip; gives the verdict."""

    def guest(client: socket.socket) -> None:
        nonce = client.recv(len(REQUEST) + NONCE_SIZE, socket.MSG_WAITALL)[len(REQUEST) :]
        bound = ssh_report_data(nonce, [base64.b64decode(HOST_KEY.split()[1])])
        answer = {**evidence(read_vm_config(config), bound), "host_keys": [HOST_KEY]}
        client.sendall(json.dumps(answer).encode())

    with listening(guest) as port:
        attest_guest(
            vm_config=config, host="127.0.0.1", port=port, ssh_port=2222, emulated_root=Path("/nonexistent"),
            identity=built.keys.user_private, user="user", template=ROOT / "templates" / "ssh_config.j2",
            output=output,
        )  # fmt: skip
    return dict(json.loads((output / "verdict.json").read_text()))


def test_attest_verity_refuses_and_the_printed_command_helps(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_built(built, tmp_path / "project")
    config, output = copy.build / "verity" / "vm-config-verity.toml", tmp_path / "out"
    output.mkdir()
    assert read_vm_config(config).require_reference().minimum_tcb is None  # as config.yaml has it
    with pytest.raises(UserError, match=r"REFUSED \(tcb-floor\)") as refused:
        attest_verity(copy, config, output)
    assert [path.name for path in output.iterdir()] == ["refused"]  # nothing that ssh would trust
    with monkeypatch.context() as patch:  # control: without the check the chip is accepted
        patch.setattr(appraisal, "check_floor", without_the_check)
        assert attest_verity(copy, config, output)["accepted"] is True
    # The command as it is printed; doitw hands its words to doit.
    command = refused.value.hint.removeprefix(f"{REMEDY}: ")
    assert re.fullmatch(r"\./doitw setup_verity MIN_TCB=\S+", command)
    before = read_vm_config(config).require_reference()
    said = copy.doit(*shlex.split(command)[1:]).stdout
    after = read_vm_config(config).require_reference()
    assert after == dataclasses.replace(before, minimum_tcb=OLD.level)
    assert "no MIN_TCB" not in said
    verdict = attest_verity(copy, config, output)
    assert verdict["accepted"] is True and verdict["open"] == []
    # And it is a floor: a higher one refuses the same chip.
    copy.doit("setup_verity", "MIN_TCB=microcode:4")
    with pytest.raises(UserError, match=r"REFUSED \(minimum-reported-tcb\)"):
        attest_verity(copy, config, output)
    # In so many words any chip will do, and then every verdict says so.
    copy.doit("setup_verity", "MIN_TCB=any")
    assert any("vulnerable microcode" in road for road in attest_verity(copy, config, output)["open"])
    assert "no MIN_TCB" in copy.doit("setup_verity", "CACHE=off").stdout  # building goes without, and says what follows


@pytest.mark.parametrize("minimum", [None, "any", OLD.level], ids=["none", "any", "a floor"])
def test_attest_luks_sends_no_key_without_a_minimum(
    minimum: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, header = ensure_keys(tmp_path / "config"), tmp_path / "header.bin"
    header.write_bytes(make_header(KEY))
    keep(tmp_path / "config", Record("made"))
    reference = dataclasses.replace(REFERENCE, minimum_tcb=minimum, platform_info_required=0, platform_info_forbidden=0)
    made = dataclasses.replace(launch(), workflow="luks", platform="snp")
    config = VmConfig(tmp_path / "luks.toml", made, reference)
    config.source.write_text(render_vm_config(config))

    def released() -> list[tuple[bytes, int]]:
        with waiting(keys, tmp_path, header, report=lambda bound: evidence(config, bound)) as guest:
            try:
                attest(tmp_path / "config", header, guest, tmp_path / "out", vm_config=config.source)
            except UserError as error:
                assert "REFUSED (tcb-floor)" in error.message and "./doitw setup_luks MIN_TCB=" in error.hint
            return list(guest.received)

    assert bool(released()) is (minimum is not None)
    monkeypatch.setattr(appraisal, "check_floor", without_the_check)
    assert released()[0][0] == KEY  # control: without the check the key goes to any chip
