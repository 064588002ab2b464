# SPDX-License-Identifier: Apache-2.0
"""Benchmark of reading a disk image (IMAGE=) against tar and qemu-img on the same files: time and memory.

There are two images: one with very many files, and one with a very large hole in a file. Times include the start of the
appliance. Memory is that of a process and of all its children, QEMU among them, read from /proc while they run.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.archives.rootfs import EPOCH, Layer, make_rootfs, text_entry
from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.bench.build import show
from sevsnp.bench.timing import ratio_row
from sevsnp.errors import UserError
from sevsnp.images.filesystem import make_ext4
from sevsnp.system.command import run, spawned
from sevsnp.system.files import scratch_directory, write_atomic

GIB = 1 << 30
_FILE = 1 << 10
_IN_DIRECTORY = 1000
_SECONDS = 3600.0
_POLL = 0.02
# The import in a process of its own, as a task makes it.
_IMPORT = """\
import json, sys
from pathlib import Path
from sevsnp.images.foreign import import_image
import_image(root_device="", **{name: Path(path) for name, path in json.loads(sys.argv[1]).items()})
"""


@dataclass(frozen=True)
class Cost:
    """The seconds of a work, and the largest sum of the memory of its processes in bytes."""

    seconds: float
    memory: int


def bench_image(
    *,
    qemu: Path,
    kernel: Path,
    initrd: Path,
    probe_cache: Path,
    tools: Path,
    results: Path,
    rounds: int = 3,
    files: int = 100_000,
    hole: int = 300 * GIB,
) -> None:
    """Measure, print a table, and write ``results`` (JSON). Needs 3 GB beside it.

    ``files`` is the number of files of 1 KiB in the first image; ``hole`` is the size of the hole in the second one, in
    bytes. ``rounds`` is how often each work is measured. Raises :class:`UserError` for a work that fails.
    """
    given = {"qemu": qemu, "kernel": kernel, "initrd": initrd, "probe_cache": probe_cache}
    with scratch_directory(results.absolute()) as scratch:
        many, tree = _many_files(scratch, files, tools)
        holed = _with_hole(scratch, hole, tools)
        output = scratch / "output"

        def imported(image: Path) -> list[str | Path]:
            paths = {name: str(path.absolute()) for name, path in {**given, "image": image, "output": output}.items()}
            return [sys.executable, "-c", _IMPORT, json.dumps(paths)]

        rows = [
            *_rows(f"import of {files:,} files ÷ tar", imported(many), ["tar", "-cf", output, "-C", tree, "."], rounds),
            *_rows(
                f"import of a hole of {hole / GIB:.0f} GiB ÷ qemu-img convert",
                imported(holed),
                [tools / "qemu-img", "convert", "-f", "raw", "-O", "raw", holed, output],
                rounds,
            ),
        ]
    write_atomic(results, json.dumps({"rounds": rounds, "cpus": os.cpu_count(), "measures": rows}, indent=2) + "\n")
    show(rows)


def _rows(name: str, ours: Sequence[str | Path], bare: Sequence[str | Path], rounds: int) -> Iterator[dict[str, Any]]:
    """A row of times and one of memory; the works take turns, and a first round is not counted."""
    print(f"  {name}", flush=True)
    costs = [(measured(ours), measured(bare)) for _ in range(rounds + 1)][1:]
    yield ratio_row(f"{name}: time", [one.seconds for one, _ in costs], [two.seconds for _, two in costs], None, 3)
    # The memory is looked at again and again, which can only miss a peak: the largest value is the best one.
    sizes = [float(one.memory) for one, _ in costs], [float(two.memory) for _, two in costs]
    memory = ratio_row(f"{name}: memory", *sizes, None, 0, max)
    memory["bytes"], memory["bare_bytes"] = memory.pop("seconds"), memory.pop("bare_seconds")
    yield memory


def measured(argv: Sequence[str | Path]) -> Cost:
    """Run a command to its end. Raises :class:`UserError` if it fails."""
    started = time.perf_counter()
    most, ended = [0], threading.Event()
    # The whole environment of this process, because it has the path of our own modules.
    with spawned(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=_SECONDS) as process:

        def watch() -> None:
            while not ended.is_set():
                most[0] = max(most[0], memory_of(process.pid))
                ended.wait(_POLL)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            code = process.wait()
        finally:
            seconds = time.perf_counter() - started
            ended.set()
            watching.join()
    if code:
        raise UserError(f"{Path(argv[0]).name}: exit code {code}")
    return Cost(seconds, most[0])


def memory_of(session: int) -> int:
    """The resident memory of all processes in a session, in bytes. Pages that they share count for each."""
    pages = 0
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # proc(5): the name is in parentheses; state, parent, group and session follow.
                if int((place / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                    pages += int((place / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


_SYSTEM = (text_entry("etc/os-release", "ID=bench\n"), text_entry("usr/sbin/init", "#!/bin/sh\n", 0o755))


def _many_files(scratch: Path, count: int, tools: Path) -> tuple[Path, Path]:
    """An ext4 image with ``count`` files of different content, and a directory with the same files."""
    tree, image, tar = scratch / "tree", scratch / "many.img", scratch / "many.tar"
    entries = list(_SYSTEM)
    for number in range(count):
        name = f"srv/{number // _IN_DIRECTORY}/{number}"
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number.to_bytes(8, "big") * (_FILE // 8))
        entries.append(
            Entry(name, Kind.FILE, 0o644, mtime=EPOCH, content=Content(size=_FILE, inode=("many", number), path=path))
        )
    make_rootfs([Layer("many files", entries)], tar)
    make_ext4(tar, image, tools=tools)
    tar.unlink()
    return image, tree


def _with_hole(scratch: Path, hole: int, tools: Path) -> Path:
    """An ext4 image with a file that is nothing but a hole of this size."""
    image, tar = scratch / "hole.img", scratch / "hole.tar"
    make_rootfs([Layer("a hole", [*_SYSTEM, text_entry("srv/hole", "")])], tar)
    make_ext4(tar, image, tools=tools)
    # An ext4 file may be larger than its file system.
    run([tools / "debugfs", "-w", "-R", f"set_inode_field /srv/hole size {hole}", image])
    with image.open("r+b") as stream:
        stream.truncate(hole)
    tar.unlink()
    return image
