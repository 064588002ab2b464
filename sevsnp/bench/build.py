# SPDX-License-Identifier: Apache-2.0
"""Benchmark of builds against the bare tools: ratios of times that are measured in turns, in one run.

The benchmark uses a copy of the project with its own artefact cache, so that it does not change the user's build and
finds nothing in the cache that it has to build.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.bench.luks import bare_luks_image
from sevsnp.bench.timing import ratio_row
from sevsnp.errors import UserError
from sevsnp.store.session import options
from sevsnp.system.command import find, run, spawned
from sevsnp.system.files import remove_tree, scratch_directory, write_atomic

GOALS = ("setup_verity", "host_bundle", "create_new_vm", "build_tools")
_LEFT_OUT = ("build", ".git", ".venv", ".cache", ".doit.db*", ".*_cache", "__pycache__", "*.egg-info")
_RUN_SECONDS = 1800
_SHORT = 10.0  # seconds: a ratio whose two works together take less is measured more often
_LUKS_FREE = 512 << 20
_TREES = ("verity", "guest", "kernel", "layers", "snp-release", "host-bundle", "debs")


@dataclass(frozen=True)
class Measure:
    """One ratio: the timed work, the work it is compared with, the preparation before each, and the goal."""

    name: str
    ours: Callable[[], None]
    bare: Callable[[], None]
    goal: float
    before: Callable[[], None] = lambda: None
    before_bare: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Copy:
    """The copy that is measured: its directory, its artefact cache, and a directory for the bare tools' output."""

    project: Path
    cache: Path
    bare: Path

    @property
    def build(self) -> Path:
        return self.project / "build"

    def doit(self, *words: str, cache: Path | None = None) -> None:
        with spawned(
            [sys.executable, "-m", "doit", *words],
            cwd=self.project,
            # The whole environment of this process, because it has the settings of this run.
            # Python keeps byte code, as it does for a user.
            env={**os.environ, "SEVSNP_CACHE": str((cache or self.cache).absolute()), "PYTHONDONTWRITEBYTECODE": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_RUN_SECONDS,
        ) as process:
            said, _ = process.communicate()
        if process.returncode:
            raise UserError(f"doit {' '.join(words)}: exit code {process.returncode}\n{said.decode()[-2000:]}")

    def forget(self, *names: str) -> None:
        """Remove these paths below build/, and all contents of the artefact cache."""
        self.remove(*names)
        remove_tree(self.cache / "entries")
        remove_tree(self.cache / "blobs")

    def remove(self, *names: str) -> None:
        for name in names:
            path = self.build / name
            remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)


def bench_build(*, results: Path, rounds: int = 3) -> None:
    """Measure, print a table, and write ``results`` (JSON: seconds, ratio and goal of each). Needs about 4 GB.

    Each ratio is measured ``rounds`` times; a ratio of short works is measured three times as often.
    """
    with _copied(results) as copy:
        rows = [_measured(measure, rounds) for measure in _measures(copy)]
    write_atomic(results, json.dumps({"rounds": rounds, "cpus": os.cpu_count(), "measures": rows}, indent=2) + "\n")
    show(rows)
    print(f"{results}: written")


@contextlib.contextmanager
def _copied(results: Path) -> Iterator[Copy]:
    with scratch_directory(results.absolute()) as scratch:
        copy = Copy(scratch / "project", scratch / "cache", scratch / "bare")
        shutil.copytree(Path.cwd(), copy.project, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        copy.bare.mkdir()
        print("  making a copy of what is built")
        copy.doit(*GOALS, cache=options().directory)
        yield copy


def _measures(copy: Copy) -> list[Measure]:
    edited = copy.project / "guest-vm" / "files" / "etc" / "motd"
    large = copy.project / "guest-vm" / "files" / "opt" / "large"
    kept = copy.bare / "kept"
    found = [
        Measure("no-op of everything ÷ doit list", lambda: copy.doit(*GOALS), lambda: copy.doit("list"), 2),
        Measure(
            "setup_verity ÷ mke2fs, e2fsck, veritysetup format and verify",
            lambda: copy.doit("setup_verity"),
            lambda: _bare_image(copy),
            1.3,
            before=lambda: copy.forget("verity"),
        ),
        Measure(
            "the same with 2 GiB more in the root ÷ the same tools",
            lambda: copy.doit("setup_verity"),
            lambda: _bare_image(copy),
            1.3,
            before=lambda: _enlarge(copy, large),
            after=lambda: _reduce(copy, large),
        ),
        Measure(
            "one file edited to the new root hash ÷ the same tools",
            lambda: copy.doit("_verity_root"),
            lambda: _bare_image(copy),
            1.5,
            before=lambda: _edit(edited),
        ),
        Measure(
            "setup_luks ÷ mke2fs, e2fsck, luksFormat and dd in the same throw-away VM",
            # A CONFIG_DIR of its own, so that no volume that never starts stays among the user's keys.
            lambda: copy.doit("setup_luks", f"CONFIG_DIR={copy.bare / 'keys'}", f"LUKS_FREE={_LUKS_FREE}"),
            lambda: bare_luks_image(copy.build, copy.bare, _LUKS_FREE),
            1.3,
            before=lambda: copy.remove("luks"),
        ),
        Measure(
            "restore of everything ÷ cp",
            lambda: copy.doit(*GOALS),
            lambda: _copy_all(kept, copy.build),
            1.3,
            before=lambda: copy.remove(*_TREES, "bin", *_archives(copy)),
            before_bare=lambda: _set_aside(copy, kept),
        ),
    ]
    if find("cpio") and find("zstd"):
        content = copy.bare / "content"
        _unpack_initramfs(copy, content)
        found.insert(
            2,
            Measure(
                "initramfs ÷ dpkg-deb, cpio | zstd",
                lambda: copy.doit("initramfs"),
                lambda: _bare_initramfs(copy, content),
                1.3,
                before=lambda: copy.forget("layers", "initramfs.cpio.zst"),
            ),
        )
    else:
        print("  initramfs is not measured: cpio and zstd are not there (apt-get install cpio zstd)")
    return found


def _measured(measure: Measure, rounds: int) -> dict[str, Any]:
    print(f"  {measure.name}", flush=True)
    ours: list[float] = []
    bare: list[float] = []
    turns = (
        (measure.before, measure.ours, ours),
        (measure.before_bare, measure.bare, bare),
    )
    while len(bare) <= rounds:
        for before, work, seconds in turns:
            before()
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        if len(bare) == 1 and ours[0] + bare[0] < _SHORT:
            rounds *= 3  # other work of the machine affects a short work most
    measure.after()
    # The first time of each is a warm-up, which loads files into memory and makes byte code.
    return ratio_row(measure.name, ours[1:], bare[1:], measure.goal, 3)


def _edit(file: Path) -> None:
    file.write_text(f"edited at {time.time_ns()}\n")


def _enlarge(copy: Copy, directory: Path) -> None:
    """Forget the verified root, and give the guest 2 GiB more of files that have no content in common."""
    copy.forget("verity")
    if not directory.exists():
        directory.mkdir(parents=True)
        for number in range(2048):
            (directory / f"{number}").write_bytes(hashlib.shake_256(b"%d" % number).digest(1 << 20))
        copy.doit("_guest_rootfs")  # the input of the bare tools


def _reduce(copy: Copy, directory: Path) -> None:
    remove_tree(directory)
    copy.doit("_guest_rootfs")


def _bare_image(copy: Copy) -> None:
    """An image like ours and its hash tree, made and checked by the same programs and nothing else."""
    # With room for the inodes that mke2fs makes by default for a file system of this size.
    size = (copy.build / "verity" / "verity.img").stat().st_size * 53 // 50 // 4096 * 4096
    tools = copy.build / "snp-release" / "bin"
    image, tree = copy.bare / "image", copy.bare / "tree"
    image.unlink(missing_ok=True)
    tree.unlink(missing_ok=True)
    tar = copy.build / "guest" / "rootfs.tar"
    plain = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-b", "4096", "-m", "0"]
    run([tools / "mke2fs", *plain, "-d", tar, image, f"{size >> 10}k"])
    run([tools / "e2fsck", "-f", "-n", image])
    salt = "0" * 64
    said = run([tools / "veritysetup", "format", f"--salt={salt}", "--no-superblock", image, tree]).decode()
    root_hash = said.split("Root hash:")[1].split()[0]
    run([tools / "veritysetup", "verify", f"--salt={salt}", "--no-superblock", image, tree, root_hash])


def _bare_initramfs(copy: Copy, content: Path) -> None:
    """Unpack the initramfs's packages, and pack a tree of the same content, with the stock tools."""
    tree = copy.bare / "unpacked"
    remove_tree(tree)
    tree.mkdir()
    for deb in sorted((copy.build / "debs" / "initramfs").glob("*.deb")):
        run(["dpkg-deb", "-x", deb, tree])
    script = "cd $1 && find . -print0 | cpio --null --quiet -o -H newc | zstd -q -9 -T1 -f -o $2"
    run(["sh", "-c", script, "sh", content, copy.bare / "initramfs.zst"])


def _unpack_initramfs(copy: Copy, content: Path) -> None:
    content.mkdir()
    script = "zstd -q -d -c $1 | { cd $2 && cpio --quiet -i -d --no-absolute-filenames; }"
    for name in ("base", "modules", "init"):
        run(["sh", "-c", script, "sh", copy.build / "layers" / f"{name}.cpio.zst", content])


def _archives(copy: Copy) -> list[str]:
    return [path.name for path in copy.build.glob("initramfs*.zst")]


def _set_aside(copy: Copy, kept: Path) -> None:
    if not kept.exists():
        kept.mkdir()
        _copy_all(copy.build, kept)
    remove_tree(copy.build)
    copy.build.mkdir()


def _copy_all(source: Path, target: Path) -> None:
    run(["cp", "-a", "--sparse=auto", f"{source}/.", target])


def show(rows: list[dict[str, Any]]) -> None:
    """Print the ratios as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measured", "ratio", "goal", "")
    for row in rows:
        goal = ("–", "") if row["goal"] is None else (f"≤ {row['goal']}", "met" if row["met"] else "missed")
        table.add_row(row["name"], f"{row['ratio']:.2f}", *goal)
    Console().print(table)
