# SPDX-License-Identifier: Apache-2.0
"""Benchmark of a verification: as a command, and repeatedly in one process: one chip, a hundred in turn, new ones.

Only a chip can make evidence that `verify_report` accepts. So the evidence comes from a software secure processor, and
the command is `verify_report_emulated`: the same code under another root. It differs only in AMD's revocation list,
which such a root does not have.
"""

import importlib.util
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevsnp.bench.timing import in_turns, ratio_row
from sevsnp.commands.tools import START
from sevsnp.errors import UserError
from sevsnp.firmware.known import OURS
from sevsnp.system.command import spawned
from sevsnp.vm_config.config import Disk, File, Launch, Reference, Tcb, VmConfig, render_vm_config

if TYPE_CHECKING:
    from sevsnp.emulation.psp import EmulatedPsp

_PROCESS_GOAL, _ONE_GOAL, _P384_GOAL = 0.150, 0.001, 1.4
_REPORTS, _CHIPS = 300, 100
_REPORT_DATA = bytes(range(64))
Seconds = dict[str, list[float]]
_COMMAND = START.format(module="sevsnp.commands.verify_report_emulated")


def measure_verification(scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows as in the launch-digest benchmark: wall-clock seconds for commands, CPU seconds within one process.

    ``scratch`` is a directory for the files. Raises :class:`UserError` if the evidence is not accepted, or on a machine
    with a real secure processor, where the software one does not start.
    """
    from sevsnp.emulation.psp import EmulatedPsp
    from sevsnp.emulation.report_encoder import encode_report

    fleet = EmulatedPsp.create_fleet(scratch / "psp", _CHIPS)
    config = _config(scratch)
    assert config.reference
    honest = fleet[0].fields(_REPORT_DATA, launch=config.launch, measurement=config.reference.launch_digest)
    made = [encode_report(replace(honest, report_id=os.urandom(32))) for _ in range(_REPORTS)]
    reports = [fleet[number % _CHIPS].sign(body) for number, body in enumerate(made)]
    (scratch / "report").write_bytes(reports[0])
    (scratch / "table").write_bytes(fleet[0].certificate_table())
    return [*_processes(scratch, config, rounds), *_in_process(scratch, config, fleet, reports, rounds)]


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


def _in_process(
    scratch: Path, config: VmConfig, fleet: list["EmulatedPsp"], reports: list[bytes], rounds: int
) -> list[dict[str, Any]]:
    """CPU seconds, which do not include the work of other processes. ``reports`` are of the processors in turn."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    from sevsnp.attestation.appraisal import Evidence, Expected, appraise
    from sevsnp.emulation.verify import read_root

    # The production verifier's roots are in its code, so the root is read before the time is measured.
    root, expected, now = read_root(scratch / "psp" / "ark.pem"), Expected.of(config, _REPORT_DATA), datetime.now(UTC)
    # Each with bytes of its own, as they come from a guest: Python hashes an object once, but every new one again.
    sent = [Evidence(one, fleet[number % len(fleet)].certificate_table()) for number, one in enumerate(reports)]
    own = [Evidence(sent[0].report, fleet[0].certificate_table()) for _ in reports]
    key = fleet[0].vcek.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)

    def verify(evidence: list[Evidence], before: Callable[[], None] = lambda: None) -> None:
        for one in evidence:
            before()
            if not appraise(one, expected, now, root).accepted:
                raise UserError("a verification in process: not accepted")

    def bare() -> None:
        for one in own:
            r, s = (int.from_bytes(one.report[at : at + 48], "little") for at in (0x2A0, 0x2E8))
            key.verify(encode_dss_signature(r, s), one.report[:0x2A0], ec.ECDSA(hashes.SHA384()))

    works = {"known": lambda: verify(own), "fleet": lambda: verify(sent), "bare": bare}
    known = in_turns(works, rounds, clock=time.process_time, number=len(reports))
    works = {"new": lambda: verify(sent, _forget), "bare": bare}
    if importlib.util.find_spec("omne_attest"):
        works["other"] = _omne_attest(fleet, reports)
    new = in_turns(works, rounds, clock=time.process_time, number=len(reports))
    return _rows(known, new, len(fleet))


def _rows(known: Seconds, new: Seconds, chips: int) -> list[dict[str, Any]]:
    row = ratio_row("one verification in process, chain known ÷ 1 ms", known["known"], [_ONE_GOAL], 1.0, 6)
    row["per_second"] = round(1 / min(known["known"]))
    beside = ratio_row("the same ÷ one P-384 verification", known["known"], known["bare"], _P384_GOAL, 6)
    beside["bare_per_second"] = round(1 / min(known["bare"]))
    fleet = ratio_row(f"{chips} chips in turn ÷ one P-384 verification", known["fleet"], known["bare"], _P384_GOAL, 6)
    first = ratio_row("a chip never seen before ÷ one P-384 verification", new["new"], new["bare"], None, 6)
    rows = [row, beside, fleet, first]
    if "other" in new:
        rows.append(ratio_row("the same ÷ omne-attest", new["new"], new["other"], None, 6))
    return rows


def _forget() -> None:
    """Empty every cache of the verifier in this process."""
    for name, module in list(sys.modules.items()):
        if name.startswith("sevsnp.attestation."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _omne_attest(fleet: list["EmulatedPsp"], reports: list[bytes]) -> Callable[[], None]:
    """Another verifier's work on the same reports. Its policy compares five values, and it asks for no VM config."""
    import hashlib

    import omne_attest  # type: ignore[import-not-found,unused-ignore]
    from cryptography.hazmat.primitives.serialization import Encoding

    chains = [[one.public_bytes(Encoding.DER) for one in (psp.vcek, psp.ask, psp.ark)] for psp in fleet]
    pin = hashlib.sha256(chains[0][2]).digest()
    policy = omne_attest.Policy(report_data=_REPORT_DATA)

    def work() -> None:
        for number, report in enumerate(reports):
            omne_attest.verify(report, *chains[number % len(chains)], pin, policy)

    return work
