# SPDX-License-Identifier: Apache-2.0
"""The attestation benchmark on a small initramfs: its results, and the inputs that it refuses."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import utils

from sevsnp.attestation import chain
from sevsnp.bench import launch_digest as bench
from sevsnp.bench import verification
from sevsnp.bench.attestation import bench_attestation
from sevsnp.bench.timing import ratio_row
from sevsnp.errors import UserError
from tests.support.evidence import firmware


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "firmware"
    path.write_bytes(firmware(volume=True))
    return path


def agree(row: dict[str, Any]) -> bool:
    """Whether a row with the goal 1 says that it was met where it was; its ratio was rounded after that."""
    return row["met"] is (row["ratio"] <= 1) or row["ratio"] == 1


@pytest.mark.parametrize(("ours", "met"), [(1.0, True), (1.001, False), (0.999, True), (2.0, False)])
def test_a_goal_is_compared_before_anything_is_rounded(ours: float, met: bool) -> None:
    row = ratio_row("a", [ours], [1.0], 1.0, 3)
    assert row["met"] is met and row["ratio"] == round(ours, 2)
    assert ratio_row("a", [ours], [1.0], None, 3)["met"] is True


def test_the_least_time_counts_and_the_most_memory() -> None:
    assert ratio_row("a", [3.0, 2.0, 9.0], [1.0, 4.0, 8.0], None, 3)["ratio"] == 2.0
    assert ratio_row("a", [3.0, 2.0, 9.0], [1.0, 4.0, 8.0], None, 3, max)["ratio"] == 1.12


def test_the_launch_digest_rows_have_time_and_memory(image: Path, tmp_path: Path) -> None:
    pytest.importorskip("sevsnpmeasure")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    time, other, memory = bench.measure_launch_digest(image, scratch, 2, 1 << 20)
    assert len(time["seconds"]) == len(time["bare_seconds"]) == len(other["bare_seconds"]) == 2
    assert time["ratio"] > 0 and agree(other)
    assert 1 << 20 < memory["bytes"]["ours"] < 40 << 20 and memory["met"] is True


def test_a_different_digest_ends_the_benchmark(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sevsnpmeasure")
    monkeypatch.setattr(bench, "hash_cmdline", lambda _: bytes(32))
    with pytest.raises(UserError, match="computes another launch digest"):
        bench.measure_launch_digest(image, tmp_path, 1, 1 << 20)


def count_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of the processor on which only the check of a signature takes time: a second each."""
    checks: list[object] = []

    def counted(check: Callable[..., object]) -> Callable[..., object]:
        def count(*arguments: object) -> object:
            checks.append(check)
            return check(*arguments)

        return count

    # Of the three, the verifier uses the first two and the bare verification the third.
    for place, name in ((chain, "encode_dss_signature"), (chain, "verify_pss"), (utils, "encode_dss_signature")):
        monkeypatch.setattr(place, name, counted(getattr(place, name)))
    monkeypatch.setattr("time.process_time", lambda: float(len(checks)))


def test_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_REPORTS", 20)
    monkeypatch.setattr(verification, "_PROCESS_GOAL", 10.0)
    monkeypatch.setattr(verification, "_CHIPS", 3)
    count_signatures(monkeypatch)
    process, processor, beside, one, other, fleet, new, *rest = verification.measure_verification(tmp_path, 2)
    assert agree(process) and min(process["ratio"], beside["ratio"], processor["ratio"]) > 0
    assert len(processor["seconds"]) == len(process["seconds"])
    assert one["per_second"] == 1 and agree(one) and other["goal"] == fleet["goal"] == 1.4 and new["goal"] is None
    # Each report has its signature checked. A new chip has three RSA signatures more: of the VCEK, the ASK and the ARK.
    assert one["seconds"] == [1.0, 1.0]
    assert (other["ratio"], fleet["ratio"], new["ratio"]) == (1, 1, 4)
    assert len(rest) == bool(importlib.util.find_spec("omne_attest"))


def test_evidence_that_is_not_accepted_ends_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_COMMAND", "raise SystemExit(2)")
    with pytest.raises(UserError, match="exit code 2, expected 10"):
        verification.measure_verification(tmp_path, 1)


def test_the_task(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": "a", "ratio": 1.0, "goal": 1.5, "met": True}]
    monkeypatch.setattr("sevsnp.bench.attestation.measure_launch_digest", lambda *_: rows)
    monkeypatch.setattr("sevsnp.bench.attestation.measure_verification", lambda *_: [])
    results = tmp_path / "bench" / "attestation.json"
    bench_attestation(firmware=image, results=results)
    assert json.loads(results.read_text())["measures"] == rows and "met" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such file"):
        bench_attestation(firmware=tmp_path / "none", results=results)
