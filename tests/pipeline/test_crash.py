# SPDX-License-Identifier: Apache-2.0
"""Builds killed at random moments: nothing half-written, nothing left running, and the same bytes in the end."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import GOALS, PROJECT, Built
from tests.support.copies import copy_built
from tests.support.processes import ends_with_us
from tests.support.waiting import NET, wait_until

# What is thrown away before a run, so that it is made while the run is killed: the task's name as it is shown, the
# function by which the cache knows it, its outputs below build/, and about how long it takes.
STAGES = {
    "packages": ("sevsnp.packages.steps:make_packages", ("snp-release", "debs"), 9.0),
    "unpack_kernel": ("sevsnp.packages.steps:make_kernel", ("kernel",), 2.0),
    "guest packages": ("sevsnp.images.guest_packages:make_packages_layer", ("guest/packages.tar",), 14.0),
    "guest rootfs": ("sevsnp.images.guest:make_guest_rootfs", ("guest/rootfs.tar",), 2.0),
    "create_new_vm": ("sevsnp.images.guest_disk:make_guest_disk", ("guest/sevsnptest.qcow2",), 6.0),
    "firmware": ("sevsnp.firmware.make:make_firmware", ("firmware",), 3.0),
    "base layer": ("sevsnp.images.initramfs:make_packages_layer", ("layers/base.cpio.zst",), 3.0),
    "initramfs": ("sevsnp.images.initramfs:join_layers", ("initramfs.cpio.zst",), 0.3),
    "verity root": (
        "sevsnp.images.verity_root:make_verity_root",
        ("verity/verity.img", "verity/hash-tree.img", "verity/roothash.txt", "verity/copied.json"),
        4.0,
    ),
    "host_bundle": ("sevsnp.release.bundle:make_bundle", ("host-bundle",), 2.0),
    "build_tools": ("sevsnp.commands.tools:make_tools", ("bin",), 0.2),
}
# Writes down when which of these functions begins and ends, in the process in which it runs.
WITNESS = PROJECT / "tests" / "support" / "crash_witness.py"
# Outputs that are directories: they appear whole or not at all, not file by file.
TREES = ("snp-release", "debs/initramfs", "debs/guest", "kernel", "host-bundle")
# Logs of guests and runs, and the encrypted workflow, which these runs do not make and no two runs make alike.
APART = ("run", "log", "luks", "host-bundle-luks", "debs/appliance")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass
class Ground:
    """A copy of the built project with a cache and a TMPDIR of its own."""

    project: Path
    config_dir: Path
    cache: Path
    temporary: Path
    known: dict[tuple[int, int, int, int], str] = field(default_factory=dict)

    @property
    def build(self) -> Path:
        return self.project / "build"

    @property
    def witness(self) -> Path:
        """Where :data:`WITNESS` writes."""
        return self.temporary.with_name("witness") / "seen"

    def running(self) -> set[str]:
        """The functions of :data:`STAGES` that began in the last run and did not end."""
        seen = Counter(self.witness.read_text().split() if self.witness.exists() else ())
        return {name for name, _, _ in STAGES.values() if seen[f"+{name}"] > seen[f"-{name}"]}

    def start(self, *words: str, output: Path) -> "subprocess.Popen[bytes]":
        self.witness.parent.mkdir(exist_ok=True)
        shutil.copy(WITNESS, self.witness.with_name("sitecustomize.py"))
        self.witness.unlink(missing_ok=True)
        with output.open("wb") as stream:
            return subprocess.Popen(
                ends_with_us(sys.executable, "-m", "doit", "run", *words),
                cwd=self.project,
                env={
                    **os.environ,
                    "CONFIG_DIR": str(self.config_dir),
                    "SEVSNP_CACHE": str(self.cache),
                    "TMPDIR": str(self.temporary),
                    "PYTHONPATH": str(self.witness.parent),
                    "WITNESS": str(self.witness),
                    "WITNESS_OF": " ".join(name for name, _, _ in STAGES.values()),
                },
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *words: str) -> str:
        """A run to its end; what it said."""
        output = self.temporary.with_name("output")
        process = self.start(*words, output=output)
        try:
            code = process.wait(1800)
        finally:
            process.kill()
        assert code == 0, output.read_text()[-4000:]
        return output.read_text()

    def digest(self, path: Path) -> str:
        """SHA-256 and mode of a file, what a link says; a file that did not change is not read again."""
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return f"-> {path.readlink()}"
        name = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if name not in self.known:
            with path.open("rb") as stream:
                self.known[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        return f"{self.known[name]} {stat.S_IMODE(status.st_mode):o}"

    def digests(self) -> dict[str, str]:
        """Every file in build/ that is not in a scratch directory; logs of guests aside."""
        found = {}
        for folder, directories, names in os.walk(self.build):
            here = Path(folder).relative_to(self.build)
            links = [name for name in directories if (self.build / here / name).is_symlink()]
            directories[:] = [
                name for name in directories if not name.startswith(".") and (here / name).as_posix() not in APART
            ]
            for name in (*names, *links):
                if "appliance" in name:
                    continue
                found[(here / name).as_posix()] = self.digest(self.build / here / name)
        return found

    def damage(self, reference: dict[str, str]) -> list[str]:
        """What is there, in build/ or in the cache, and not as an undisturbed build makes it."""
        found = self.digests()
        said = [f"build/{name}: not as it was" for name, digest in found.items() if reference.get(name) != digest]
        for tree in TREES:
            if (self.build / tree).exists():
                whole = {name for name in reference if name.startswith(f"{tree}/")}
                said += [f"build/{name}: missing" for name in sorted(whole - found.keys())]
        blobs = {path.name: path for path in self.cache.glob("blobs/??/[0-9a-f]*")}
        said += [f"{path}: damaged" for name, path in blobs.items() if self.digest(path) != f"{name} 444"]
        for path in self.cache.glob("entries/[0-9a-f]*"):
            wanted = set(re.findall("[0-9a-f]{64}", json.dumps(_without_small(json.loads(path.read_bytes())))))
            said += [f"{path}: lacks {name}" for name in wanted - blobs.keys() - {path.name}]
        return said

    def leavings(self) -> set[Path]:
        places = (self.build.rglob(".*"), self.cache.rglob(".*"), self.temporary.iterdir())
        return {path for place in places for path in place if path.name not in (".gitignore", ".ci")}

    def living(self) -> list[str]:
        """The processes of this ground: each has its TMPDIR, or a path in it, in its environment or its arguments."""
        marks = (str(self.temporary).encode(), str(self.project).encode())
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            if int(entry.name) == os.getpid():
                continue
            seen = b""
            for name in ("cmdline", "environ"):
                try:
                    seen += (entry / name).read_bytes()
                except OSError:
                    continue  # it ended, or is another user's
            if any(mark in seen for mark in marks):
                found.append(f"{entry.name}: {seen[:200]!r}")
        return found

    def lose(self, stage: str, *, build: bool, database: bool, cache: bool) -> None:
        """Throw away what a stage made, in build/ and in the cache; or all of build/, all of the cache."""
        function, outputs, _ = STAGES[stage]
        for path in (self.build,) if build else tuple(self.build / name for name in outputs):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if database:
            (self.project / ".doit.db").unlink(missing_ok=True)
        if cache:
            shutil.rmtree(self.cache)
            self.cache.mkdir(mode=0o700)
        for path in self.cache.glob("entries/[0-9a-f]*"):
            if json.loads(path.read_bytes())["function"] == function:
                path.unlink()


def _without_small(entry: dict[str, object]) -> object:
    """An entry without what is in packs: the digests that remain are of blobs."""
    text = json.dumps(entry)
    return json.loads(
        re.sub(r'\["f", \d+, "[0-9a-f]{64}", (\d+)\]', lambda m: m[0] if int(m[1]) >= 1 << 20 else "0", text)
        if '"tree"' in text
        else text
    )


@pytest.fixture
def ground(built: Built, tmp_path: Path, artefact_cache: Path) -> Ground:
    """Everything built and in the cache."""
    copy = copy_built(built, tmp_path / "project")
    made = Ground(copy.project, copy.config_dir, tmp_path / "cache", tmp_path / "temporary")
    made.temporary.mkdir()
    # Blobs are read-only and replaced as a whole; entries are small.
    for path in artefact_cache.glob("blobs/??/[0-9a-f]*"):
        place = made.cache / path.relative_to(artefact_cache)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(path)
    (made.cache / "entries").mkdir()
    for path in artefact_cache.glob("entries/[0-9a-f]*"):
        shutil.copy2(path, made.cache / "entries")
    made.cache.chmod(0o700)
    (made.project / ".doit.db").unlink()
    made.run(*GOALS)  # build/bin names the directory, and has to be made here
    return made


def wait_for_stage(ground: Ground, process: "subprocess.Popen[bytes]", output: Path, stage: str) -> bool:
    """Whether a run began to make a stage, with the function that does it, before it ended."""
    while process.poll() is None:
        if f"▸ {stage}\n" in output.read_text(errors="replace") and STAGES[stage][0] in ground.running():
            return True
        time.sleep(0.01)
    return False


def kill_once(
    ground: Ground,
    chosen: random.Random,
    stage: str,
    number: signal.Signals,
    reference: dict[str, str],
    everything_lost: float,
    patience: float,
) -> tuple[str, set[str]]:
    """Throw something away, start a run, kill it; what it was making then, or nothing if it ended before, and which
    functions it was killed in.

    Most are killed at some time of ``patience`` times what the stage takes.
    """
    everything = chosen.random() < everything_lost
    lost = {
        "build": everything or chosen.random() < 0.25,
        "database": everything or chosen.random() < 0.25,
        "cache": everything,
    }
    ground.lose(stage, **lost)
    before = ground.leavings()
    whole_group = chosen.random() < 0.4
    words = ["-n", "2"] if chosen.random() < 0.4 else []
    # Some at any time from the very start, most while the stage is made.
    early = chosen.random() < 0.15
    delay = chosen.uniform(0, 4.0 if early else STAGES[stage][2] * patience)
    output = ground.temporary.with_name("output")
    process = ground.start(*words, *GOALS, output=output)
    try:
        if early or wait_for_stage(ground, process, output, stage):
            time.sleep(delay)
        inside, ended = ground.running(), process.poll() is not None
        if not ended:
            (os.killpg if whole_group else os.kill)(process.pid, number)
        code = process.wait(NET)
        inside &= ground.running()
    finally:
        process.kill()
        process.wait()
    said = output.read_text(errors="replace")
    now = ", ".join(re.findall(r"^▸ (.+)$", re.sub(r"^▸ (.+)$(?=[\s\S]*^✓ \1 \()", "", said, flags=re.M), re.M))
    print(
        f"{number.name} to the {'group' if whole_group else 'process'} {delay:.2f} s after "
        f"{'the start' if early else stage}, lost {', '.join(name for name in lost if lost[name]) or stage}; "
        f"{'it had ended' if ended else f'it made {now}' if now else 'between tasks'}, "
        f"in {', '.join(sorted(inside)) or 'no function'}, exit code {code}"
    )
    wait_until(lambda: not ground.living(), what=lambda: f"{ground.living()}\n{said}")
    assert ground.damage(reference) == [], said
    if ended:
        assert code == 0, said
        return "", set()
    # A run that has done its work hands signals back to the kernel before it is gone.
    if number is not signal.SIGKILL and "▸" in said and code not in (0, -number):
        # It had the time to say so and to tidy up.
        assert code == 128 + number and "Traceback" not in said and f"interrupted by {number.name}" in said, said
        assert ground.leavings() <= before, said
    return now or "nothing", inside


def kill_often(ground: Ground, times: int, stages: list[str], seed: int, *, everything_lost: float = 0.0) -> list[str]:
    """Kill ``times`` runs, compare all there is after each, and let one run to its end; what was being made.

    Each of ``stages`` was hit while its function ran: what was missed is tried again, sooner each time.
    """
    chosen = random.Random(seed)
    print(f"seed {seed}")
    reference = ground.digests()
    assert ground.living() == [] and ground.damage(reference) == [] and ground.leavings() == set()
    hit: list[str] = []
    missed = list(stages)
    patience = dict.fromkeys(stages, 1.1)
    for attempt in range(times * 4):
        left = missed if len(hit) >= times else stages
        stage, number = left[attempt % len(left)], SIGNALS[(attempt // 2) % len(SIGNALS)]
        made, inside = kill_once(ground, chosen, stage, number, reference, everything_lost, patience[stage])
        if made:
            hit.append(made)
        if STAGES[stage][0] not in inside:
            patience[stage] /= 3
        missed = [name for name in missed if STAGES[name][0] not in inside]
        if len(hit) >= times and not missed:
            break
    assert len(hit) >= times and missed == []
    ground.run(*GOALS)
    assert ground.digests() == reference
    assert ground.living() == []
    ground.run("cache_prune", "cache_verify")
    assert ground.leavings() == set()
    # And it is at rest.
    assert "▸" not in ground.run(*GOALS)
    return hit


@pytest.mark.full
def test_a_build_recovers_from_three_kills(ground: Ground) -> None:
    kill_often(ground, 3, ["unpack_kernel", "verity root"], seed=3)


@pytest.mark.full
def test_a_build_recovers_from_thirty_kills(ground: Ground) -> None:
    hit = kill_often(ground, 33, list(STAGES), seed=int(os.environ.get("CRASH_SEED", "33")), everything_lost=0.1)
    # It was not always the same that was hit.
    assert len({name for names in hit for name in names.split(", ")} & STAGES.keys()) >= 7, hit


@pytest.mark.full
def test_control_each_kind_of_damage_is_detected(ground: Ground) -> None:
    """An orphan process, a half-written target, a tree without one of its files, a damaged blob, temporary files."""
    reference = ground.digests()
    orphan = subprocess.Popen(["sleep", "300"], env={"TMPDIR": str(ground.temporary)}, start_new_session=True)
    try:
        # A process shows its environment a moment after it has begun.
        (found,) = wait_until(ground.living)
        assert found.split(":")[0] == str(orphan.pid)
    finally:
        orphan.kill()
        orphan.wait()
    assert ground.living() == []

    image = ground.build / "verity" / "verity.img"
    half = image.read_bytes()[: image.stat().st_size // 2]
    image.unlink()  # absent it is no damage
    assert ground.damage(reference) == []
    image.write_bytes(half)
    modules = ground.build / "kernel" / "version"
    modules.unlink()
    (ground.build / "stray").write_text("x")
    blob = max(ground.cache.glob("blobs/??/*"), key=lambda path: path.stat().st_size)
    blob.unlink()
    lacking = [line for line in ground.damage(reference) if line.startswith(str(ground.cache))]
    assert lacking and all(line.endswith(f"lacks {blob.name}") for line in lacking)
    blob.write_bytes(b"half")
    assert {line.removeprefix(f"{ground.cache}/") for line in ground.damage(reference)} == {
        "build/verity/verity.img: not as it was",
        "build/kernel/version: missing",
        "build/stray: not as it was",
        f"blobs/{blob.parent.name}/{blob.name}: damaged",
    }
    for place in (ground.build / "verity", ground.cache / "entries", ground.temporary):
        (place / ".half.12345678").mkdir()
    assert len(ground.leavings()) == 3
