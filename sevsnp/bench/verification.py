# SPDX-License-Identifier: Apache-2.0
"""Benchmark of a verification: as a command, and repeatedly in one process with a known chain.

Only a chip can make evidence that `verify_report` accepts. So the evidence comes from a software secure processor, and
the command is `verify_report_emulated`: the same code under another root. It differs only in AMD's revocation list,
which such a root does not have.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sevsnp.bench.timing import in_turns, ratio_row
from sevsnp.commands.tools import START
from sevsnp.errors import UserError
from sevsnp.firmware.known import OURS
from sevsnp.system.command import spawned
from sevsnp.vm_config.config import Disk, File, Launch, Reference, Tcb, VmConfig, render_vm_config

_PROCESS_GOAL, _ONE_GOAL = 0.150, 0.001
_REPORTS = 300
_REPORT_DATA = bytes(range(64))
_COMMAND = START.format(module="sevsnp.commands.verify_report_emulated")


def measure_verification(scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows as in the launch-digest benchmark: wall-clock seconds for commands, CPU seconds within one process.

    ``scratch`` is a directory for the files. Raises :class:`UserError` if the evidence is not accepted, or on a machine
    with a real secure processor, where the software one does not start.
    """
    from sevsnp.emulation.psp import EmulatedPsp
    from sevsnp.emulation.report_encoder import encode_report

    psp = EmulatedPsp.create(scratch / "psp")
    config = _config(scratch)
    assert config.reference
    honest = psp.fields(_REPORT_DATA, launch=config.launch, measurement=config.reference.launch_digest)
    # All reports differ, because the result of verifying a signature is cached.
    reports = [psp.sign(encode_report(replace(honest, report_id=os.urandom(32)))) for _ in range(_REPORTS)]
    (scratch / "report").write_bytes(reports[0])
    (scratch / "table").write_bytes(psp.certificate_table())
    return [*_processes(scratch, config, rounds), *_in_process(scratch, config, reports, rounds)]


def _config(scratch: Path) -> VmConfig:
    file = File(scratch / "none", "0" * 64)
    disks = (Disk("root", file.path, 4096, file.sha256),)
    launch = Launch("verity", "emulated", "Genoa", 1, "EPYC-v4", 0x30000, 1, bytes(32),
                    File(file.path, OURS), file, file, file, disks)  # fmt: skip
    reference = Reference(os.urandom(48), Tcb(1, 0, 1, 1), 0, 0, bytes(16), bytes(16), 0, 0)
    config = VmConfig(scratch / "vm-config.toml", launch, reference)
    config.source.write_text(render_vm_config(config))
    return config


def _processes(scratch: Path, config: VmConfig, rounds: int) -> list[dict[str, Any]]:
    from sevsnp.commands.verify_report_emulated import ACCEPTED_AS_EMULATED

    # The certificates of a real report would be in the user's cache; these are in a file.
    words = ["--input", "report", "--certificates", "table", "--root", "psp/ark.pem", "--json",
             "--vm_definition", str(config.source), "--report-data", _REPORT_DATA.hex()]  # fmt: skip

    taken: list[float] = []

    def start(script: str, *arguments: str) -> int:
        # The path of our own modules is needed too.
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        # With pipes, because their end is noticed at once: without pipes, subprocess polls every 50 ms.
        with spawned(
            [sys.executable, "-P", "-c", script, *arguments],
            cwd=scratch, env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
        ) as process:  # fmt: skip
            process.communicate()
        return process.returncode

    def ours() -> None:
        before = _of_children()
        if (code := start(_COMMAND, *words)) != ACCEPTED_AS_EMULATED:
            raise UserError(f"verify_report_emulated: exit code {code}, expected {ACCEPTED_AS_EMULATED}")
        taken.append(_of_children() - before)

    works = {"ours": ours, "bare": lambda: start("import cryptography.x509")}
    seconds = in_turns(works, max(3 * rounds, 5))
    return [
        ratio_row("verify_report as a whole process ÷ 150 ms", seconds["ours"], [_PROCESS_GOAL], 1.0, 6),
        ratio_row("its seconds of processor ÷ 150 ms", taken[1:], [_PROCESS_GOAL], 1.0, 6),
        ratio_row("the same ÷ python -c 'import cryptography.x509'", seconds["ours"], seconds["bare"], None, 6),
    ]


def _of_children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _in_process(scratch: Path, config: VmConfig, reports: list[bytes], rounds: int) -> list[dict[str, Any]]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    from sevsnp.attestation.appraisal import Evidence, Expected
    from sevsnp.attestation.certificates import certificates_of_table
    from sevsnp.emulation.verify import appraise_emulated

    table, root = (scratch / "table").read_bytes(), scratch / "psp" / "ark.pem"
    expected, now = Expected.of(config, _REPORT_DATA), datetime.now(UTC)
    key = certificates_of_table(table)[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)

    def ours() -> None:
        for report in reports:
            if not appraise_emulated(Evidence(report, table), expected, now, root).accepted:
                raise UserError("a verification in process: not accepted")

    def bare() -> None:
        for report in reports:
            r, s = (int.from_bytes(report[at : at + 48], "little") for at in (0x2A0, 0x2E8))
            key.verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))

    # CPU seconds, which do not include the work of other processes.
    works = {"ours": ours, "bare": bare}
    seconds = in_turns(works, rounds, clock=time.process_time, number=len(reports))
    row = ratio_row("one verification in process, chain known ÷ 1 ms", seconds["ours"], [_ONE_GOAL], 1.0, 6)
    row["per_second"] = round(1 / statistics.median(seconds["ours"]))
    other = ratio_row("the same ÷ one P-384 verification of cryptography", seconds["ours"], seconds["bare"], None, 6)
    other["bare_per_second"] = round(1 / statistics.median(seconds["bare"]))
    return [row, other]
