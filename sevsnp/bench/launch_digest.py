# SPDX-License-Identifier: Apache-2.0
"""Benchmark of a launch digest against hashing only the initramfs, and against sev-snp-measure if it is installed."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sevsnp.bench.timing import in_turns, ratio_row
from sevsnp.errors import UserError
from sevsnp.measurement.launch_digest import KernelHashes, Machine, hash_cmdline, hash_file, measure_firmware
from sevsnp.system.command import run

INITRAMFS = 200_000_000
_CMDLINE = "console=ttyS0"
_MEMORY_GOAL = 40 << 20
_TIME_GOAL = 1.5
# A process of its own that prints its peak memory. getrusage would also count the memory of its parent process.
_PEAK = """
import re, runpy, sys
module, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__")
except SystemExit as ended:
    if ended.code:
        raise
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


def measure_launch_digest(firmware: Path, scratch: Path, rounds: int, size: int = INITRAMFS) -> list[dict[str, Any]]:
    """Rows as in the build benchmark, and one row of memory in bytes; ``size`` is the initramfs's size in bytes.

    ``scratch`` is a directory for the files. Raises :class:`UserError` if the two programs give different digests.
    """
    kernel, initrd = scratch / "kernel", scratch / "initrd"
    kernel.write_bytes(os.urandom(1 << 16))
    with initrd.open("wb") as stream:
        for start in range(0, size, 1 << 20):
            stream.write(os.urandom(min(1 << 20, size - start)))

    def ours() -> bytes:
        hashes = KernelHashes(hash_file(kernel, "kernel"), hash_file(initrd, "initrd"), hash_cmdline(_CMDLINE.encode()))
        return measure_firmware(firmware, hashes, [1], Machine("EPYC-v4", 1))[0][1]

    def bare() -> bytes:
        return hash_file(initrd, "initrd")

    works: dict[str, Callable[[], bytes]] = {"ours": ours, "bare": bare}
    files = ("--kernel", str(kernel), "--initrd", str(initrd), "--append", _CMDLINE)
    peaks = {"ours": _peak("sevsnp.commands.measure", "--firmware", str(firmware), *files)}
    if importlib.util.find_spec("sevsnpmeasure"):
        from sevsnpmeasure import guest
        from sevsnpmeasure.vcpu_types import CPU_SIGS

        def theirs() -> bytes:
            words = (str(firmware), str(kernel), str(initrd), _CMDLINE, 1, "")
            return bytes(guest.snp_calc_launch_digest(1, CPU_SIGS["EPYC-v4"], *words))

        if theirs() != ours():
            raise UserError("sev-snp-measure computes another launch digest", "one of the two is wrong: report it")
        works["theirs"] = theirs
        options = ("--mode", "snp", "--vcpus", "1", "--vcpu-type", "EPYC-v4", "--ovmf", str(firmware))
        peaks["theirs"] = _peak("sevsnpmeasure.cli", *options, *files)
    else:
        print("  without sev-snp-measure, which is not installed: pip install sev-snp-measure")
    seconds = in_turns(works, rounds)
    rows = [ratio_row("launch digest ÷ SHA-256 of its initramfs", seconds["ours"], seconds["bare"], _TIME_GOAL, 4)]
    if "theirs" in works:
        rows.append(ratio_row("launch digest ÷ sev-snp-measure", seconds["ours"], seconds["theirs"], 1.0, 4))
    return [*rows, _memory_row(peaks, size)]


def _memory_row(peaks: dict[str, int], size: int) -> dict[str, Any]:
    return {
        "name": f"memory of `measure` with an initramfs of {size / 1e6:.0f} MB ÷ 40 MiB",
        "ratio": round(peaks["ours"] / _MEMORY_GOAL, 2),
        "goal": 1.0,
        "met": peaks["ours"] < _MEMORY_GOAL,
        "bytes": peaks,
    }


def _peak(module: str, *words: str) -> int:
    """The most memory, in bytes, that a command of the Python ``module`` took."""
    # The whole environment of this process, because it has the path of our own modules.
    said = run([sys.executable, "-c", _PEAK, module, *words], env=os.environ, timeout=300)
    return int(said.split()[-1]) << 10
