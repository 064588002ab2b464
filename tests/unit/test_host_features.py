"""sev-feature-info: what a host's secure processor answers, decoded, and the policy that fits it."""

import fcntl
import json
import struct
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation import host_features
from sevsnp.attestation.policy import make_policy
from sevsnp.errors import UserError
from sevsnp.vm.config import Tcb
from tests.unit.evidence import REPORT_DATA, config

CPUINFO = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: EPYC\nstepping\t: 1\n"
STATUS = struct.pack("<BBBBIII8s8s", 1, 55, 1, 1, 40, 0b110, 3, bytes((10, 0, 0, 0, 0, 0, 24, 84)),
                     bytes((10, 0, 0, 0, 0, 0, 23, 84)))  # fmt: skip


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    (tmp_path / "parameters").mkdir()
    (tmp_path / "parameters" / "sev_snp").write_text("Y\n")
    (tmp_path / "sev").touch()

    def ioctl(stream: Any, command: int, message: Any, mutate: bool) -> int:
        import ctypes

        assert command == 0xC0105300 and len(message) == 16 and mutate
        number, address, error = struct.unpack("<IQI", message)
        assert (number, error) == (9, 0)
        ctypes.memmove(address, STATUS, len(STATUS))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return {"device": tmp_path / "sev", "cpuinfo": tmp_path / "cpuinfo", "parameters": tmp_path / "parameters"}


def test_a_host(host: dict[str, Any]) -> None:
    found = host_features.collect(**host, release="6.12.0")
    assert (found["product"], found["vmsa"], found["problem"]) == ("Genoa", "linux-6.9", "")
    status = found["status"]
    assert (status["api"], status["build"], status["guests"]) == ((1, 55), 40, 3)
    assert (status["mask_chip_id"], status["mask_chip_key"], status["vlek"]) == (False, True, True)
    assert status["reported_tcb"]["snp"] == 23 and status["current_tcb"]["snp"] == 24
    assert json.loads(json.dumps(found))["kvm_amd"] == {
        "sev": "not there", "sev_es": "not there", "sev_snp": "Y", "debug_swap": "not there",
    }  # fmt: skip
    # The section can be pasted as it is.
    policy = tomllib.loads(found["policy"])["policy"]
    made = make_policy(policy, Path("x"), config(), REPORT_DATA)
    assert made.profile.startswith("default") and "masks its chip key" in found["policy"]


def test_no_secure_processor(host: dict[str, Any]) -> None:
    host["device"].unlink()
    found = host_features.collect(**host, release="6.1.0")
    assert "no secure processor" in found["problem"] and found["status"] is None and found["vmsa"] == "linux-6.5"
    host["cpuinfo"].write_text(CPUINFO.replace("AuthenticAMD", "GenuineIntel"))
    assert "not an AMD" in host_features.collect(**host, release="6.1.0")["problem"]


def test_decoding() -> None:
    assert host_features.decode_status(STATUS, "Genoa").reported_tcb == Tcb(10, 0, 23, 84)
    turin = STATUS[:16] + bytes((1, 2, 3, 4, 0, 0, 0, 5)) * 2
    assert host_features.decode_status(turin, "Turin").current_tcb == Tcb(2, 3, 4, 5, fmc=1)
    with pytest.raises(UserError, match="found 31 bytes"):
        host_features.decode_status(STATUS[:-1], "Genoa")


@pytest.mark.parametrize(
    ("release", "swap", "layout"),
    [("6.1.0-35-amd64", False, "linux-6.5"), ("6.6.2", True, "linux-6.6"), ("6.8.0", False, "linux-6.5"),
     ("6.9", True, "linux-6.9"), ("7.1.0", False, "linux-6.9"), ("custom", False, "linux-6.9")],
)  # fmt: skip
def test_layouts_by_kernel(release: str, swap: bool, layout: str) -> None:
    assert host_features.layout_of(release, swap) == layout
