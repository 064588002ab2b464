# SPDX-License-Identifier: Apache-2.0
"""Benchmark of measuring and verifying, each compared with another method in the same run."""

import json
import os
from pathlib import Path

from sevsnp.bench.build import show
from sevsnp.bench.launch_digest import measure_launch_digest
from sevsnp.bench.verification import measure_verification
from sevsnp.errors import UserError
from sevsnp.system.files import scratch_directory, write_atomic


def bench_attestation(*, firmware: Path, results: Path, rounds: int = 5) -> None:
    """Measure, print a table, and write ``results`` (JSON, as the build benchmark's). Needs 200 MB of disk."""
    if not firmware.is_file():
        raise UserError(f"{firmware}: no such file", "run: ./doitw _firmware")
    with scratch_directory(results.absolute()) as scratch:
        rows = [*measure_launch_digest(firmware, scratch, rounds), *measure_verification(scratch, rounds)]
    write_atomic(results, json.dumps({"rounds": rounds, "cpus": os.cpu_count(), "measures": rows}, indent=2) + "\n")
    show(rows)
