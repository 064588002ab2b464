# SPDX-License-Identifier: Apache-2.0
"""Which key goes to which guest: the rules, the record written before a key is sent, and the whole of attest_luks."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation.appraisal import Appraisal
from sevsnp.attestation.report import parse_report
from sevsnp.attestation.verifier import HardwareVerdict
from sevsnp.emulation.verify import verify_emulated
from sevsnp.errors import UserError
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record, read_record, write_record
from sevsnp.keys.paths import Keys
from sevsnp.owner.attestation import trust_domain
from sevsnp.owner.luks import Volume, check_release
from sevsnp.vm_config.config import VmConfig, render_vm_config
from tests.support.data_disk import data_launch
from tests.support.evidence import REFERENCE, evidence, expected, launch, now, root
from tests.support.key_guest import HOST_KEY
from tests.support.luks_owner import KEY, UUID, attest, attest_data, config_dir, header, keep, keys, waiting

__all__ = ["config_dir", "header", "keys"]  # fixtures

FIELDS = {
    "made": Record("made"),
    "given": Record("given"),
    "exposed": Record("made", exposed=True),
    "sent": Record("made", sent=True),
    "given and sent": Record("given", sent=True),
    "sent to both": Record("made", exposed=True, sent=True),
}
# record, domain, PLATFORM=emulated said: whether the key is released.
RULES = {
    ("made", "amd", False): True,
    ("made", "amd", True): True,
    ("given", "amd", False): True,
    ("given", "amd", True): True,
    ("exposed", "amd", False): False,
    ("exposed", "amd", True): False,
    ("made", "emulated", False): True,
    ("made", "emulated", True): True,
    ("exposed", "emulated", False): True,
    ("given", "emulated", False): False,
    ("given", "emulated", True): True,
    ("sent", "amd", False): True,
    ("sent", "emulated", False): False,
    ("sent", "emulated", True): False,
    ("given and sent", "emulated", False): False,
    ("given and sent", "emulated", True): True,
    ("sent to both", "amd", True): False,
    ("sent to both", "emulated", False): True,
    ("made", "other", True): False,
    ("made", "", True): False,
}


@pytest.mark.parametrize(("record", "domain", "asked"), RULES)
def test_the_rules(record: str, domain: str, asked: bool) -> None:
    if RULES[record, domain, asked]:
        check_release(domain, FIELDS[record], emulated_asked=asked)
    else:
        with pytest.raises(UserError):
            check_release(domain, FIELDS[record], emulated_asked=asked)


def emulated_verdict() -> Any:
    return verify_emulated(evidence(), expected(), now(), root())


def test_only_the_type_of_a_verdict_decides() -> None:
    verdict = emulated_verdict()
    assert trust_domain(verdict) == "emulated"
    # No hardware here: what the production verifier would make, from the inside.
    from sevsnp.attestation import verifier

    report = parse_report(evidence().report, "Genoa")
    appraisal = Appraisal("accepted", "amd", "default", report, "VCEK", (), now())
    assert trust_domain(HardwareVerdict(appraisal, verifier._TOKEN)) == "amd"

    class Liar:
        def to_json(self) -> dict[str, Any]:
            return {"trust_domain": "amd", "accepted": True}

    for liar in (Liar(), {"trust_domain": "amd"}, None, HardwareVerdict, "amd"):
        with pytest.raises(TypeError, match="expected a verdict"):
            trust_domain(liar)


def test_an_emulated_guest_is_recorded_before_it_gets_the_key(config_dir: Path, header: Path) -> None:
    keep(config_dir, Record("made", generation=5))
    volume = Volume(header, config_dir, "")
    assert not read_record(config_dir, UUID).exposed
    secret = volume.secret_for(emulated_verdict(), emulated_asked=False)
    assert read_record(config_dir, UUID) == Record("made", generation=5, exposed=True)
    assert (secret.key, secret.generation) == (KEY, 5)
    assert secret.header == hashlib.sha256(header.read_bytes()).digest()
    assert repr(secret).count("key") == 0 and KEY.decode() not in repr(secret)


def test_no_key_is_released_if_the_record_cannot_be_written(
    config_dir: Path, header: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(config_dir, Record("made"))
    volume = Volume(header, config_dir, "")

    def full(*_: Any, **__: Any) -> Record:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(luks_key, "update_record", full)
        with pytest.raises(OSError, match="No space"):
            volume.secret_for(emulated_verdict(), emulated_asked=False)
    luks_key.key_path(config_dir, UUID).with_suffix(".json").unlink()
    with pytest.raises(UserError, match="this volume was not made here"):
        volume.secret_for(emulated_verdict(), emulated_asked=False)


def test_a_record_that_changes_during_the_attestation_counts(config_dir: Path, header: Path) -> None:
    keep(config_dir, Record("made"))
    volume = Volume(header, config_dir, "")
    write_record(config_dir, UUID, Record("given"))
    with pytest.raises(UserError, match="a key of your own"):
        volume.secret_for(emulated_verdict(), emulated_asked=False)


def test_a_confidential_guest_is_recorded_before_it_gets_the_key(config_dir: Path, header: Path) -> None:
    """Otherwise a guest whose answer is lost would have data without a record of them."""
    from sevsnp.attestation import verifier

    keep(config_dir, Record("made"))
    report = parse_report(evidence().report, "Genoa")
    verdict = HardwareVerdict(Appraisal("accepted", "amd", "default", report, "VCEK", (), now()), verifier._TOKEN)
    assert not read_record(config_dir, UUID).opened
    Volume(header, config_dir, "").secret_for(verdict, emulated_asked=False)
    assert read_record(config_dir, UUID) == Record("made", sent=True) and read_record(config_dir, UUID).opened


def test_a_key_in_another_directory_is_used(
    config_dir: Path, keys: Keys, header: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the end-to-end run: with a volume of its own, whatever key the user has given."""
    monkeypatch.setattr(luks_key, "given", lambda *_, **__: luks_key.Key(b"the user's own", "LUKS_KEY"))
    own = tmp_path / "own"
    keep(own, Record("made"))
    with waiting(keys, tmp_path, header) as guest:
        with pytest.raises(UserError, match="this volume was not made here"):
            attest(config_dir, header, guest, tmp_path / "out", key_file=None)
        attest(config_dir, header, guest, tmp_path / "out", key_file=None, key_dir=own)
        assert guest.received == [(KEY, 0)]
    assert read_record(own, UUID) == Record("made", generation=1, exposed=True)


def test_the_remedies_for_an_exposed_key_begin_with_the_most_likely_one(config_dir: Path, header: Path) -> None:
    with pytest.raises(UserError) as refused:
        check_release("amd", Record("made", exposed=True), emulated_asked=False)
    hint = refused.value.hint
    assert 0 < hint.index("./doitw attest_luks PLATFORM=emulated") < hint.index("./doitw setup_luks PLATFORM=snp")


def test_a_key_that_does_not_open_the_header_is_reported_at_once(config_dir: Path, header: Path) -> None:
    keep(config_dir, Record("made"), b"another key")
    with pytest.raises(UserError, match="this key does not open"):
        Volume(header, config_dir, "")
    keep(config_dir, Record("given"))
    with pytest.raises(UserError, match="expected the key of your own that the volume was made with"):
        Volume(header, config_dir, "")


def test_attest_luks(config_dir: Path, keys: Keys, header: Path, tmp_path: Path) -> None:
    keep(config_dir, Record("made", generation=7))
    out = tmp_path / "out"
    with waiting(keys, tmp_path, header) as guest:
        attest(config_dir, header, guest, out)
        assert guest.received == [(KEY, 7)] and guest.end() is None
    assert read_record(config_dir, UUID) == Record("made", generation=8, exposed=True)
    assert (out / "known_hosts").read_text() == f"[127.0.0.1]:2222 {HOST_KEY}\n"
    verdict = json.loads((out / "verdict.emulated.json").read_text())
    assert (verdict["accepted_as_emulated"], verdict["emulated"], verdict["confidential"]) == (True, True, False)
    assert len((out / "attestation_report.emulated.bin").read_bytes()) == 1184
    assert not (out / "verdict.json").exists() and not (out / "attestation_report.bin").exists()
    assert "known_hosts" in (out / "ssh_config").read_text()


def test_the_key_of_a_data_disk(config_dir: Path, keys: Keys, tmp_path: Path) -> None:
    """By the same rules. ssh does not trust the guest yet, because the guest gives evidence for its host key later."""
    (tmp_path / "made").mkdir()
    made = data_launch(tmp_path / "made")
    disk_header = tmp_path / "made" / "data" / "header.bin"
    keep(config_dir, Record("made", generation=7))
    out = tmp_path / "out"
    with waiting(keys, tmp_path, disk_header) as guest:
        attest_data(config_dir, guest, out, made)
        assert guest.received == [(KEY, 7)] and guest.end() is None
    assert read_record(config_dir, UUID) == Record("made", generation=8, exposed=True)
    assert not (out / "known_hosts").exists()
    keep(config_dir, Record("given"))
    with waiting(keys, tmp_path, disk_header) as guest:
        with pytest.raises(UserError, match="found no key") as refused:
            attest_data(config_dir, guest, out, made)
        assert refused.value.hint == "give the key: LUKS_KEY=… ./doitw attest_verity" and guest.received == []


def test_a_guest_with_another_data_disk_gets_no_key(config_dir: Path, keys: Keys, tmp_path: Path) -> None:
    for name, seed in (("made", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        data_launch(tmp_path / name, seed)
    keep(config_dir, Record("made"))
    made = data_launch(tmp_path / "made")
    for place, refused in (("other", True), ("made", False)):  # the second is the control
        with waiting(keys, tmp_path, tmp_path / place / "data" / "header.bin") as guest:
            if refused:
                with pytest.raises(UserError, match=r"REFUSED \(report-data\)"):
                    attest_data(config_dir, guest, tmp_path / "out", made)
                assert guest.received == []
            else:
                attest_data(config_dir, guest, tmp_path / "out", made)
                assert guest.received == [(KEY, 0)]


def test_a_refusal_does_not_replace_accepted_evidence(
    config_dir: Path, keys: Keys, header: Path, tmp_path: Path
) -> None:
    keep(config_dir, Record("made"))
    out = tmp_path / "out"
    with waiting(keys, tmp_path, header) as guest:
        attest(config_dir, header, guest, out)  # control
    with waiting(keys, tmp_path, header) as guest, pytest.raises(UserError, match=r"REFUSED \(host-data\)"):
        attest(config_dir, header, guest, out, host_data=b"x" * 32)
    assert guest.received == []
    # What was accepted before stays, and what was refused is apart from it.
    assert sorted(path.name for path in (out / "refused").iterdir()) == [
        "attestation_report.emulated.bin",
        "evidence.emulated.json",
        "verdict.emulated.html",
        "verdict.emulated.json",
    ]
    assert (out / "known_hosts").read_text() == f"[127.0.0.1]:2222 {HOST_KEY}\n"
    assert json.loads((out / "verdict.emulated.json").read_text())["accepted_as_emulated"] is True


def test_a_production_config_sends_nothing_to_an_emulated_guest(
    config_dir: Path, keys: Keys, header: Path, tmp_path: Path
) -> None:
    keep(config_dir, Record("made"))
    with waiting(keys, tmp_path, header) as guest, pytest.raises(UserError, match=r"REFUSED \(unknown-root\)") as error:
        attest(config_dir, header, guest, tmp_path / "out", platform="snp")
    assert "PLATFORM=emulated" in error.value.hint
    assert guest.received == [] and not read_record(config_dir, UUID).exposed


@pytest.mark.parametrize("record", ["given", "exposed"])
def test_a_certain_refusal_comes_before_the_connection_to_the_guest(
    record: str, config_dir: Path, keys: Keys, header: Path, tmp_path: Path
) -> None:
    keep(config_dir, FIELDS[record])
    file = tmp_path / "key"
    file.write_bytes(KEY)
    file.chmod(0o600)
    platform = "emulated" if record == "given" else "snp"
    with waiting(keys, tmp_path, header) as guest:
        with pytest.raises(UserError):
            attest(config_dir, header, guest, tmp_path / "out", platform=platform, key_file=str(file))
        assert guest.waiting
        if record == "given":  # control: said in so many words, it goes
            attest(config_dir, header, guest, tmp_path / "out", key_file=str(file), asked={"PLATFORM": "emulated"})
            assert guest.received == [(KEY, 0)]


def test_another_workflow_s_config(config_dir: Path, keys: Keys, header: Path, tmp_path: Path) -> None:
    keep(config_dir, Record("made"))
    verity = tmp_path / "verity.toml"
    verity.write_text(render_vm_config(VmConfig(verity, launch(), REFERENCE)))
    with waiting(keys, tmp_path, header) as guest, pytest.raises(UserError, match="expected luks"):
        attest(config_dir, header, guest, tmp_path / "out", vm_config=verity)
    assert guest.waiting


def test_the_key_is_in_no_argv_and_no_environment(config_dir: Path, keys: Keys, header: Path, tmp_path: Path) -> None:
    """Of this process and of the processes that it starts, while the key is sent."""
    keep(config_dir, Record("made"))
    seen: list[bytes] = []

    def look(key: bytes, generation: int) -> dict[str, Any]:
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                for name in ("cmdline", "environ"):
                    try:
                        seen.append(Path("/proc", pid, name).read_bytes())
                    except OSError:
                        continue
        return {"generation": 1, "host_keys": [HOST_KEY]}

    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()", "canary"],
        env={**os.environ, "A": KEY.decode() + " as a control"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as control:
        assert control.stdout and control.stdin and control.stdout.readline()
        with waiting(keys, tmp_path, header, unlock=look) as guest:
            attest(config_dir, header, guest, tmp_path / "out")
        control.stdin.close()
    assert [found for found in seen if KEY in found and b"as a control" not in found] == []
    assert [found for found in seen if KEY in found]
    assert threading.active_count() < 50
