# SPDX-License-Identifier: Apache-2.0
"""Benchmark of a boot: seconds to init, to the verified root and to ssh, and memory.

There are four kinds of guests: with overlay or copy, and with a small or large /var. All guests get the same memory and
differ in two things: the words for /var on the measured command line, and the root. There are two roots: the guest's
own, and one with additional 1 MiB files of incompressible bytes below /var. Each is built once, by the functions that
build every verified root. With ACPI=own, the guest with overlay and small /var also boots without the stage and ACPI,
and with more vCPUs.
"""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sevsnp.archives.rootfs import EPOCH, Layer, make_rootfs
from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.bench.chart import STARTS, WRITABLE, draw_boot, guest_name, show_boot, summary
from sevsnp.bench.guest import Login, boot_once
from sevsnp.e2e.guest import free_port
from sevsnp.e2e.stages import Stages
from sevsnp.errors import UserError
from sevsnp.host.run import config_of
from sevsnp.images.verity_root import make_verity_root
from sevsnp.measurement.launch_digest import launch_digest_of
from sevsnp.measurement.make_cmdline import make_verity_cmdline
from sevsnp.qemu.platforms import Platform, choose
from sevsnp.qemu.process import check_options
from sevsnp.qemu.run_options import RunOptions
from sevsnp.stage.image import make_stage
from sevsnp.stage.tables import make_tables
from sevsnp.system.files import sha256_file, write_atomic
from sevsnp.system.locks import locked_if_free
from sevsnp.vm_config.config import Disk, File, Stage, VmConfig, read_vm_config, render_vm_config

GIB = 1 << 30
FILE_SIZE = 1 << 20
_LABEL = "bench boot"


@dataclass(frozen=True)
class Root:
    """A verified root: its file system (ext4 or erofs), image, hash tree, and the file with its root hash."""

    filesystem: str
    image: Path
    hash_tree: Path
    root_hash: Path


def bench_boot(
    *,
    rootfs: Path,
    denied: Path,
    filesystem: str,
    tools: Path,
    directory: Path,
    qemu: Path,
    platform: str,
    probe_cache: Path,
    identity: Path,
    user: str,
    ssh_template: Path,
    config_template: Path,
    chart_template: Path,
    results: Path,
    chart: Path,
    stage_code: Path | None = None,
    stage_kernel: Path | None = None,
    runs: int = 1,
    large: int = 2 * GIB,
    memory: int = 6 * GIB,
) -> None:
    """Boot each kind of guest ``runs`` times; write the numbers to ``results`` (JSON), and a ``chart`` (SVG).

    ``rootfs`` is a root filesystem tar; otherwise the guests are those of the VM config in ``directory``. What the
    stage is made of, ``stage_code`` and ``stage_kernel``, is given if that VM config has one. The large
    /var has ``large`` more bytes (rounded down to 1 MiB). ``memory`` is each guest's memory in bytes. Several GB of
    temporary files are made beside ``results`` and removed. Raises UserError for too little disk or memory, and for a
    guest that ends or hangs before the measurement is complete.
    """
    if runs < 1:
        raise UserError(f"runs: found {runs}, expected at least 1")
    if memory < 2 * large:
        raise UserError(
            f"memory: found {memory >> 20}M, expected {2 * large >> 20}M: the copy of /var, and room beside it"
        )
    work = results.parent / "boot.work"
    with locked_if_free(results.parent / "boot.lock") as free:
        if not free:
            raise UserError(
                f"{results}: another doit measures boots here",
                "wait until it has ended: two measurements at once slow each other",
            )
        # A killed run leaves its files; the lock shows that no other run uses them.
        shutil.rmtree(work, ignore_errors=True)
        check_space(results.parent, space_needed(rootfs.stat().st_size, large))
        work.mkdir(parents=True)
        try:
            base = read_vm_config(config_of(directory, "verity", "snp"))
            chosen = choose(platform, base.launch, qemu, probe_cache)
            base = read_vm_config(config_of(directory, "verity", chosen.name))
            options = RunOptions(qemu, memory, free_port(), free_port(), work / "state", restricted=True)
            check_options(options)
            stages = Stages()
            guests, roots = {}, {}
            for size, more in (("small", 0), ("large", large)):
                with stages.stage(f"make the root with the {size} /var"):
                    roots[size] = _make_root(rootfs, denied, more, filesystem, tools, work / size)
            for writable in WRITABLE:
                for size, root in roots.items():
                    there = work / f"{writable}-{size}"
                    guests[guest_name(writable, size)] = _make_config(
                        base, root, writable, 2 * large, config_template, there
                    )
            if stage_code and stage_kernel:
                for name, vcpus in STARTS.items():
                    there = work / f"start-{len(guests)}"
                    there.mkdir()
                    started = _other_start(base, vcpus, stage_code, stage_kernel, there)
                    guests[name] = _make_config(
                        started, roots["small"], "overlay", 2 * large, config_template, there / "config"
                    )
            measured = _boot_all(stages, runs, chosen, guests, options, Login(identity, user, ssh_template))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    document = {
        "platform": chosen.name,
        "accelerator": chosen.accelerator,
        "vcpus": base.launch.vcpus,
        "host_cpus": len(os.sched_getaffinity(0)),
        "memory": memory,
        "filesystem": filesystem,
        "large": large // FILE_SIZE * FILE_SIZE,
        "runs": measured,
        **summary(measured),
    }
    write_atomic(results, json.dumps(document, indent=2) + "\n")
    draw_boot(document, chart_template, chart)
    show_boot(document)


def _boot_all(
    stages: Stages,
    runs: int,
    chosen: Platform,
    guests: Mapping[str, VmConfig],
    options: RunOptions,
    login: Login,
) -> list[dict[str, Any]]:
    """Boot every guest ``runs`` times, in turns, so that other work of the machine affects all guests alike."""
    measured = []
    for number in range(1, runs + 1):
        for name, config in guests.items():
            with stages.stage(f"boot: {name}, {number} of {runs}"):
                again = replace(options, ssh_port=free_port(), attest_port=free_port())
                numbers = boot_once(chosen, config, again, login)
            measured.append({"guest": name, "run": number, **numbers})
    return measured


def space_needed(rootfs: int, large: int) -> int:
    """Maximum disk use in bytes: the small image, the large image, and the two tars that become the large image."""
    return 2 * rootfs + (rootfs + large) * 33 // 10


def check_space(directory: Path, need: int) -> None:
    """Raises UserError unless the file system of ``directory`` has ``need`` bytes free for this user."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < need:
        found = f"found {free / GIB:.1f} GiB free, expected {need / GIB:.1f} GiB for temporary files"
        raise UserError(f"{directory}: {found}", f"see: df -h {shlex.quote(str(directory))}")


def more_files(block: Path, total: int) -> Layer:
    """A layer with ``total`` bytes in 1 MiB files in /var/lib/bench, each a copy of the file ``block`` (1 MiB)."""
    return Layer(
        "bench",
        [
            Entry(
                f"var/lib/bench/{number:05}",
                Kind.FILE,
                0o644,
                mtime=EPOCH,
                content=Content(size=FILE_SIZE, inode=("bench", number), path=block),
            )
            for number in range(total // FILE_SIZE)
        ],
    )


def _make_root(rootfs: Path, denied: Path, more: int, filesystem: str, tools: Path, work: Path) -> Root:
    """Make a root from the tar ``rootfs`` and ``more`` bytes in /var, below the new directory ``work``."""
    work.mkdir()
    root = Root(filesystem, work / "root.img", work / "hash-tree.img", work / "roothash.txt")
    tar = rootfs
    if more:
        tar, block = work / "files.tar", work / "block"
        block.write_bytes(hashlib.shake_256(_LABEL.encode()).digest(FILE_SIZE))
        make_rootfs([Layer.from_tar(rootfs), more_files(block, more)], tar)
    for _ in make_verity_root(
        rootfs=tar,
        filesystem=filesystem,
        label=_LABEL,
        denied=denied,
        tools=tools,
        image=root.image,
        hash_tree=root.hash_tree,
        root_hash=root.root_hash,
    ):
        if more:
            tar.unlink()
    return root


def _other_start(base: VmConfig, vcpus: int, code: Path, kernel: Path, work: Path) -> VmConfig:
    """``base`` with another number of vCPUs and their stage; for 0, with one vCPU and neither stage nor ACPI.

    The launch digest is not that of the result: :func:`_make_config` computes it.
    """
    reference = base.require_reference()
    if not vcpus:
        bare = File(kernel.resolve(), sha256_file(kernel))
        return replace(
            base, launch=replace(base.launch, vcpus=1, kernel=bare), reference=replace(reference, stage=None)
        )
    tables, stage = work / "acpi.bin", work / "stage.efi"
    make_tables(vcpus=vcpus, output=tables)
    make_stage(code=code, tables=tables, kernel=kernel, output=stage)
    return replace(
        base,
        launch=replace(base.launch, vcpus=vcpus, kernel=File(stage.resolve(), sha256_file(stage))),
        reference=replace(reference, stage=Stage(*map(sha256_file, (code, tables, kernel)))),
    )


def _make_config(base: VmConfig, root: Root, writable: str, var: int, template: Path, work: Path) -> VmConfig:
    """The VM config ``base`` with another root and another command line, and its own launch digest.

    ``var`` is the size of the tmpfs under /var in bytes. It is at least 1 GiB, like the sizes of the other tmpfs.
    """
    work.mkdir()
    cmdline = work / "cmdline"
    make_verity_cmdline(
        image=root.image,
        roothash=root.root_hash,
        label=_LABEL,
        rootfs=root.filesystem,
        writable=writable,
        tmpfs={"etc": GIB, "home": GIB, "var": max(var, GIB), "tmp": GIB},
        acpi=base.require_reference().acpi or base.require_reference().stage is not None,
        platform=base.launch.platform,
        output=cmdline,
    )
    disks = tuple(
        Disk(role, path.resolve(), path.stat().st_size, sha256_file(path))
        for role, path in (("verity-data", root.image), ("verity-hash", root.hash_tree))
    )
    launch = replace(base.launch, cmdline=File(cmdline.resolve(), sha256_file(cmdline)), disks=disks)
    reference = replace(base.require_reference(), launch_digest=launch_digest_of(launch))
    config = VmConfig((work / "vm-config.toml").resolve(), launch, reference)
    config.source.write_text(render_vm_config(config, template))
    return config
