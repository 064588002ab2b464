# SPDX-License-Identifier: Apache-2.0
"""`check_host`: record this machine, judge the record, and print and write the verdict."""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.host_setup.finding import Finding
from sevsnp.host_setup.judge import Verdict, judge
from sevsnp.host_setup.record import record_host
from sevsnp.host_setup.recorded import read_host
from sevsnp.system.files import write_atomic
from sevsnp.system.text import printable

FORMAT = 1
_MARKS = {"ok": ("✓", "green"), "failed": ("✗", "red"), "unknown": ("?", "yellow"), "note": ("·", "cyan")}
# The width of the table where there is no terminal; a terminal has its own.
_WIDTH = 120


def check_host(*, tree: str, record: Path, output: Path, qemus: Iterable[Path]) -> None:
    """Print the verdict about this machine, or about the recording in ``tree`` if it is not empty, and write it.

    This machine's recording is then the directory ``record``; ``output`` is the verdict as JSON (docs/hardware.md).
    Raises :class:`UserError` unless an SNP guest can start: it names the cause.
    """
    if not tree:
        record_host(record, qemus)
    place = Path(tree) if tree else record
    verdict = judge(read_host(place))
    write_atomic(output, json.dumps(document(verdict), indent=1) + "\n")
    show(verdict.findings)
    print(f"\nrecorded in {place}, the verdict in {output}")
    cause = verdict.cause
    if cause is None:
        print("SEV-SNP guests can start on this host")
        return
    can = "cannot start SEV-SNP guests" if cause.status == "failed" else "may not be able to start SEV-SNP guests"
    source = f" --from {shlex.quote(tree)}" if tree else ""
    raise UserError(
        printable(f"this host {can}: {cause.name}: {cause.found}, expected: {cause.wanted}"),
        f"{printable(cause.mend)}; then check again: ./doitw check_host{source}",
    )


def document(verdict: Verdict) -> dict[str, object]:
    """The verdict as it is written to check_host.json."""
    return {
        "format": FORMAT,
        "can_start_snp_guests": verdict.good,
        "cause": verdict.cause.name if verdict.cause else None,
        "findings": [asdict(finding) for finding in verdict.findings],
    }


def show(findings: Sequence[Finding]) -> None:
    """Print the findings as a table: what, found, wanted, and how to mend what is not as wanted."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    screen = Console()
    if not screen.is_terminal:
        screen = Console(width=_WIDTH)
    table = Table(box=None, pad_edge=False)
    for title in ("", "what", "found", "wanted", "how to mend"):
        table.add_column(title, overflow="fold")  # a path is wrapped, not cut
    for finding in findings:
        mark, colour = _MARKS[finding.status]
        mend = f"follows from {finding.because}" if finding.because else finding.mend
        words = (finding.name, finding.found, finding.wanted, mend)
        table.add_row(Text(mark, style=colour), *(Text(printable(word)) for word in words))
    screen.print(table)
