# SPDX-License-Identifier: Apache-2.0
"""The boot benchmark without guests: its images, the settings that it refuses, its statistics and its chart."""

import re
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from sevsnp.archives.rootfs import Layer, make_rootfs, text_entry
from sevsnp.archives.tar import read_tar
from sevsnp.bench.boot import FILE_SIZE, bench_boot, check_space, more_files, space_needed
from sevsnp.bench.chart import MEMORY_WIDTH, STARTS, TIME_WIDTH, boot_rows, draw_boot, summary
from sevsnp.bench.guest import wait_for_line
from sevsnp.errors import UserError
from sevsnp.system.locks import locked
from tests.support.waiting import NET

PROJECT = Path(__file__).resolve().parents[3]
TEMPLATE = PROJECT / "templates" / "bench-boot.svg.j2"
SVG = "{http://www.w3.org/2000/svg}"


def runs(overlay_large: float = 25.0, times: int = 1) -> list[dict[str, Any]]:
    """What ``times`` runs of each guest would have measured; the large copy takes four times as long."""
    seconds = {"overlay, small /var": 24.0, "overlay, large /var": overlay_large}
    seconds |= {"copy, small /var": 25.0, "copy, large /var": 100.0}
    seconds |= {name: 23.0 + number for number, name in enumerate(STARTS)}
    return [
        {
            "guest": guest, "run": number, "paused": 1.0,
            "init": 6.0 + number, "root": 9.0 + number, "ssh": ssh + number - 1,
            "total": 6 << 30, "available": 5 << 30, "used": 200 << 20, "var_tmpfs": 1 << 20, "var": 16 << 20,
        }
        for number in range(1, times + 1)
        for guest, ssh in seconds.items()
    ]  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    measured = runs()
    made = {"platform": "emulated", "accelerator": "tcg", "vcpus": 1, "memory": 6 << 30, "large": 2 << 30}
    return {**made, "runs": measured, **summary(measured), **changes}


def test_the_large_var_consists_of_separate_files(tmp_path: Path) -> None:
    block, tar = tmp_path / "block", tmp_path / "tar"
    block.write_bytes(b"0123" * (FILE_SIZE // 4))
    make_rootfs([Layer("base", [text_entry("var/lib/kept", "x")]), more_files(block, 3 * FILE_SIZE + 17)], tar)
    entries = read_tar(tar)
    files = [entry for name, entry in entries.items() if name.startswith("var/lib/bench/")]
    assert "var/lib/kept" in entries
    assert len(files) == 3
    # Hard links would be one file's bytes, however many names it has.
    assert len({file.content.inode for file in files if file.content}) == 3
    assert all(file.content and b"".join(file.content.pieces()) == block.read_bytes() for file in files)
    assert tar.stat().st_size > 3 * FILE_SIZE


def test_too_little_disk_space_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GiB free, expected 1073741824\.0 GiB") as caught:
        check_space(tmp_path, 1 << 60)
    assert f"df -h {tmp_path}" in caught.value.hint
    check_space(tmp_path, 1)  # control
    assert space_needed(200 << 20, 2 << 30) > 3 * (2 << 30)


def start(tmp_path: Path, **changes: Any) -> None:
    """The benchmark of a root that is an empty file."""
    rootfs = tmp_path / "rootfs.tar"
    rootfs.touch()
    paths = (
        "tools",
        "directory",
        "qemu",
        "probe_cache",
        "identity",
        "ssh_template",
        "config_template",
        "chart_template",
    )
    words: dict[str, Any] = {name: tmp_path / name for name in ("denied", *paths)}
    words |= {"rootfs": rootfs, "filesystem": "ext4", "platform": "auto", "user": "user", "memory": 1 << 62}
    words |= {"results": tmp_path / "out" / "boot.json", "chart": tmp_path / "out" / "boot.svg", "large": 1 << 60}
    bench_boot(**{**words, **changes})


def test_one_benchmark_runs_at_a_time_and_files_of_a_killed_one_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "out" / "boot.work" / "root.img"
    left.parent.mkdir(parents=True)
    left.touch()
    with locked(tmp_path / "out" / "boot.lock"), pytest.raises(UserError, match="another doit measures boots here"):
        start(tmp_path)
    assert left.exists()  # it is the other one's
    with pytest.raises(UserError, match="GiB free"):  # control: nobody else, so it gets further
        start(tmp_path)
    assert not left.parent.exists()


def test_settings_that_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memory: found 2048M, expected 4096M"):
        start(tmp_path, large=2 << 30, memory=2 << 30)
    with pytest.raises(UserError, match="runs: found 0"):
        start(tmp_path, runs=0)


def sleeper(seconds: float, code: int = 0) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds}); raise SystemExit({code})"])


def test_a_line_of_the_console_is_seen_when_it_appears(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    timer = threading.Timer(0.5, log.write_text, ["noise\ninit: mode verity\n"])
    with sleeper(2 * NET) as process:
        try:
            timer.start()
            wait_for_line(process, log, "init: mode ", time.monotonic() + NET)
            # Not before it was there, and not because of the process's end.
            assert "init: mode" in log.read_text() and process.poll() is None
            with pytest.raises(UserError, match=r"no 'another' on the console[^$]*init: mode verity"):
                wait_for_line(process, log, "another", time.monotonic() + 0.1)
        finally:
            timer.join()
            process.kill()


def test_the_wait_ends_with_the_guest(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_text("init: FATAL: no disk\n")
    with sleeper(0, code=3) as process:
        with pytest.raises(UserError, match=r"ended before 'init: mode ' \(exit code 3\)\ninit: FATAL: no disk"):
            wait_for_line(process, log, "init: mode ", time.monotonic() + NET)
        wait_for_line(process, log, "FATAL", 0)  # control: its last words count


def test_the_best_runs_ratios_and_the_verdict() -> None:
    found = summary(runs(overlay_large=25.2, times=3))
    assert found["best"]["overlay, small /var"]["ssh"] == 24.0  # of 24, 25 and 26
    assert found["ratios"] == {
        "overlay": {"time": pytest.approx(25.2 / 24, abs=1e-3), "memory": 1.0},
        "copy": {"time": pytest.approx(100 / 25, abs=1e-3), "memory": 1.0},
    }
    assert found["met"] is True
    # 7 to init in all guests; 24 by 23 to ssh.
    assert found["stage"] == {"init": 1.0, "ssh": pytest.approx(24 / 23, abs=1e-3)} and found["stage_met"] is True
    four = [run for run in runs() if run["guest"] not in STARTS]
    assert "stage" not in summary(four)
    slower = [{**run, "ssh": run["ssh"] * (2 if run["guest"] == "overlay, small /var" else 1)} for run in runs()]
    assert summary(slower)["stage_met"] is False
    assert summary(runs(overlay_large=27.0))["met"] is False


def test_bars_are_in_proportion() -> None:
    rows = {row.name: row for row in boot_rows(document()["best"])}
    copy, overlay = rows["copy, large /var"], rows["overlay, small /var"]
    assert sum(part.width for part in copy.phases) == pytest.approx(TIME_WIDTH)
    assert sum(part.width for part in overlay.phases) == pytest.approx(TIME_WIDTH * 0.24)
    assert [part.text for part in overlay.phases] == ["to init: 7.0 s", "to verified root: 3.0 s", "to ssh: 14.0 s"]
    for left, right in zip(copy.phases, copy.phases[1:], strict=False):
        assert left.x + left.width == pytest.approx(right.x)
    assert overlay.memory.width == pytest.approx(MEMORY_WIDTH)
    assert overlay.memory.text == "200 MiB"


def test_the_chart_has_a_title_and_a_description_and_loads_nothing(tmp_path: Path) -> None:
    output = tmp_path / "boot.svg"
    draw_boot(document(platform="<script>"), TEMPLATE, output)
    text = output.read_text()
    root = ET.fromstring(text)
    assert root.get("role") == "img"
    named = {element.get("id"): element.text or "" for element in root if element.get("id")}
    assert set((root.get("aria-labelledby") or "").split()) == set(named) == {"title", "desc"}
    assert "overlay, small /var: to init: 7.0 s" in named["desc"]
    assert "With the stage by ACPI=off: time to init 1.00, to ssh 1.04." in named["desc"]
    assert "copy: time 4.00" in named["desc"]
    # No script, and nothing from elsewhere but the name of the format.
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg",
        "title",
        "desc",
        "style",
        "rect",
        "text",
    }
    assert re.findall(r"https?:[^\"]*|@import|url\(|\bhref", text) == ["http://www.w3.org/2000/svg"]
    assert "&lt;script&gt;" in text
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("x") or 0) + float(bar.get("width") or 0) <= width
        assert float(bar.get("y") or 0) + float(bar.get("height") or 0) <= height
