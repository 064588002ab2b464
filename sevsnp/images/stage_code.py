# SPDX-License-Identifier: Apache-2.0
"""The stage's code: initramfs/stage/stage.c, built by the pinned compiler, which runs in place like the other tools."""

from pathlib import Path

from sevsnp.system.command import run

_TIMEOUT = 300.0  # seconds; it takes less than one


def make_stage_code(*, sources: Path, tools: Path, output: Path) -> None:
    """Write the code to ``output``, a flat file of some 1,100 bytes: the same on every machine.

    ``sources`` is initramfs/stage, ``tools`` the directory of the programs. Reads nothing from the network. Raises
    :class:`UserError` for a failed build.
    """
    places = {"SOURCES": sources, "TOOLS": tools, "OUT": output}
    run(
        ["sh", sources.resolve() / "stage.sh"],
        env={name: str(path.resolve()) for name, path in places.items()},
        timeout=_TIMEOUT,
    )
