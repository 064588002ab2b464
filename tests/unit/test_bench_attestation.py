"""The attestation benchmark on a small initramfs: what it says, and what it refuses."""

import json
from pathlib import Path

import pytest

from sevsnp.bench import launch_digest as bench
from sevsnp.bench.attestation import bench_attestation
from sevsnp.errors import UserError
from tests.unit.evidence import firmware


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "firmware"
    path.write_bytes(firmware())
    return path


def test_rows(image: Path, tmp_path: Path) -> None:
    pytest.importorskip("sevsnpmeasure")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    time, other, memory = bench.measure_launch_digest(image, scratch, 2, 1 << 20)
    assert len(time["seconds"]) == len(time["bare_seconds"]) == len(other["bare_seconds"]) == 2
    assert time["ratio"] > 0 and other["met"] is (other["ratio"] <= 1)
    assert 1 << 20 < memory["bytes"]["ours"] < 40 << 20 and memory["met"] is True


def test_a_digest_that_is_another_is_no_benchmark(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sevsnpmeasure")
    monkeypatch.setattr(bench, "hash_cmdline", lambda _: bytes(32))
    with pytest.raises(UserError, match="computes another launch digest"):
        bench.measure_launch_digest(image, tmp_path, 1, 1 << 20)


def test_the_task(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": "a", "ratio": 1.0, "goal": 1.5, "met": True}]
    monkeypatch.setattr("sevsnp.bench.attestation.measure_launch_digest", lambda *_: rows)
    results = tmp_path / "bench" / "attestation.json"
    bench_attestation(firmware=image, results=results)
    assert json.loads(results.read_text())["measures"] == rows and "met" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such file"):
        bench_attestation(firmware=tmp_path / "none", results=results)
