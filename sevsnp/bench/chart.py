# SPDX-License-Identifier: Apache-2.0
"""The results of the boot benchmark: the best runs and ratios, a table, and a chart for light and dark pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.system.files import write_atomic
from sevsnp.system.template import html_template

MIB = 1 << 20
WRITABLE = ("overlay", "copy")
# More guests with overlay and small /var: the number of vCPUs, and 0 for one vCPU without the stage and ACPI.
STARTS = {"the same, ACPI=off": 0, "the same, 2 vCPUs": 2, "the same, 4 vCPUs": 4}
# The limit for the time with the stage, as a multiple of that without it.
STAGE_GOAL = 1.05
# The limit for time and memory with a large /var, as a multiple of those with a small /var.
GOAL = 1.1
# Widths in pixels of the longest bars; the template fixes where the bars begin.
TIME_WIDTH = 360
MEMORY_WIDTH = 130


def guest_name(writable: str, size: str) -> str:
    return f"{writable}, {size} /var"


def summary(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """``best`` by guest, ``ratios`` large ÷ small of time to ssh and memory, ``stage`` ÷ ACPI=off, and the verdicts.

    The best is the least of each number in all runs: what else the machine does can only add to it. The ratios of the
    stage are those of the times to init and to ssh; they are missing if only the stage was measured.
    """
    best: dict[str, dict[str, float]] = {
        guest: {
            name: min(run[name] for run in measured if run["guest"] == guest)
            for name in ("init", "root", "ssh", "used", "var_tmpfs", "var")
        }
        for guest in dict.fromkeys(run["guest"] for run in measured)
    }

    def ratio(name: str, guest: str, other: str) -> float:
        return round(best[guest][name] / best[other][name], 3)

    ratios = {
        writable: {
            kind: ratio(name, guest_name(writable, "large"), guest_name(writable, "small"))
            for kind, name in (("time", "ssh"), ("memory", "used"))
        }
        for writable in WRITABLE
    }
    document = {"best": best, "ratios": ratios, "goal": GOAL, "met": max(ratios["overlay"].values()) <= GOAL}
    without = next(iter(STARTS))
    if without in best:
        stage = {name: ratio(name, guest_name("overlay", "small"), without) for name in ("init", "ssh")}
        document |= {"stage": stage, "stage_goal": STAGE_GOAL, "stage_met": max(stage.values()) <= STAGE_GOAL}
    return document


def show_boot(document: dict[str, Any]) -> None:
    """Print the best runs as a table, and the verdict."""
    from rich.console import Console
    from rich.table import Table

    where = f"{document['platform']} ({document['accelerator']}), {document['vcpus']} vCPU"
    table = Table("guest", "init", "root", "ssh", "memory", "/var", "its tmpfs", title=f"boot, {where}: seconds, MiB")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in document["best"].items():
        seconds = [f"{row[key]:.1f}" for key in ("init", "root", "ssh")]
        table.add_row(name, *seconds, *(f"{row[key] / MIB:.0f}" for key in ("used", "var", "var_tmpfs")))
    console = Console()
    console.print(table)
    for writable, ratio in document["ratios"].items():
        console.print(f"{writable}: large ÷ small /var: time to ssh {ratio['time']:.2f}, memory {ratio['memory']:.2f}")
    console.print(f"goal: overlay ratio ≤ {document['goal']}: {'met' if document['met'] else 'MISSED'}")
    if stage := document.get("stage"):
        console.print(f"with the stage ÷ ACPI=off: time to init {stage['init']:.2f}, to ssh {stage['ssh']:.2f}")
        console.print(f"goal: ≤ {document['stage_goal']}: {'met' if document['stage_met'] else 'MISSED'}")


@dataclass(frozen=True)
class Part:
    """A piece of a bar: its style class, its start and width (pixels), and its text."""

    style: str
    x: float
    width: float
    text: str


@dataclass(frozen=True)
class Row:
    """A kind of guest: the three phases of its start, and its memory."""

    name: str
    phases: tuple[Part, ...]
    seconds: float
    memory: Part


def boot_rows(best: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """The rows of the boot chart, all on one scale; times are in seconds, memory in bytes."""
    longest = max(row["ssh"] for row in best.values())
    most = max(row["used"] for row in best.values())
    rows = []
    for name, row in best.items():
        times = (0.0, row["init"], row["root"], row["ssh"])
        phases = tuple(
            Part(
                style,
                start / longest * TIME_WIDTH,
                (end - start) / longest * TIME_WIDTH,
                f"{what}: {end - start:.1f} s",
            )
            for style, what, start, end in zip(
                ("init", "root", "ssh"), ("to init", "to verified root", "to ssh"), times[:-1], times[1:], strict=True
            )
        )
        memory = Part("memory", 0, row["used"] / most * MEMORY_WIDTH, f"{row['used'] / MIB:.0f} MiB")
        rows.append(Row(name, phases, row["ssh"], memory))
    return rows


def draw_boot(document: Mapping[str, Any], template: Path, output: Path) -> None:
    """Draw the results of :func:`sevsnp.bench.boot.bench_boot`: seconds by phase, and memory, by kind of guest."""
    text = html_template(template).render(
        document=document, rows=boot_rows(document["best"]), runs=max(run["run"] for run in document["runs"])
    )
    write_atomic(output, text)
