# SPDX-License-Identifier: Apache-2.0
"""Runs where a small file system is mounted: fills it, lets an action fail, checks the report, makes room, tries again.

Arguments: a directory on that file system, another one, and the rows of the test. Prints the rows that were reported.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from sevsnp.bench.boot import check_space
from sevsnp.pipeline.checkout import Checkout
from sevsnp.qemu.appliance import _check_room
from sevsnp.store.making import _full_disk
from sevsnp.system import command
from sevsnp.volumes.directory import _room
from tests.support.table import Told

DATA = bytes(8192)


def fill(place: Path) -> None:
    with contextlib.suppress(OSError):
        (place / "filler").write_bytes(bytes(16 << 20))
    for number in range(20):
        with contextlib.suppress(OSError):
            (place / f"filler.{number}").touch()


def tidy(place: Path) -> None:
    for path in place.iterdir():
        path.unlink()


def actions(place: Path, source: Path) -> list[Callable[[], object]]:
    def temporary() -> None:
        with command.temporary_directory("x.") as directory:
            (directory / "file").write_bytes(DATA)

    def artefact() -> None:
        with _full_disk(place / "output"):
            (place / "output").write_bytes(DATA)

    def checkout() -> None:
        lock = Checkout(place / "lock")
        lock.acquire(lambda _: None)
        lock.release()

    def volume() -> None:
        with _room(place / "volume"):
            (place / "volume").write_bytes(DATA)

    return [
        temporary,
        lambda: command.run(["cp", source, place / "copy"]),
        artefact,
        checkout,
        volume,
        lambda: _check_room([place]),
        lambda: check_space(place, 4 << 20),
    ]


def main(place: Path, other: Path, rows: list[str]) -> None:
    source = other / "source"
    source.write_bytes(DATA)
    command.run(["true"])  # from now on, commands have a TMPDIR that is not full
    tempfile.tempdir = str(place)
    told = Told(rows, other, dict(os.environ))
    temporary, *_ = todo = actions(place, source)
    for action in todo:
        fill(place)
        hint = told.hint(action)
        shown = told.shell(hint.rpartition(": ")[2])
        assert shown.returncode == 0 and "100%" in shown.stdout, shown.stdout
        tidy(place)
        action()
        tidy(place)
    fill(place)
    tempfile.tempdir = str(other)  # as TMPDIR does
    temporary()
    print("\n".join(told.seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
