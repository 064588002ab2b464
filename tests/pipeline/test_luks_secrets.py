# SPDX-License-Identifier: Apache-2.0
"""A search for a disk key on the owner's machine: in all places where it must not be, during its use and later.

Processes' arguments and environments are sampled all the time, every execve is traced, and what the runs wrote is read
byte by byte. The same search finds a canary that is planted in each of those places.
"""

import base64
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sevsnp.images.luks2 import Luks2, opens
from sevsnp.vm_config.config import VmConfig, read_vm_config
from tests.conftest import Built
from tests.support.evidence import psp, root
from tests.support.key_guest import key_guest
from tests.support.luks_ground import SECONDS, Ground, make_ground
from tests.support.secret_search import forms, search, search_file

CANARY = b"canary-8d61 of a disk key, \xc3\xa9 and all"
SMALL = 4 << 20


def changed_since(start: float, paths: Iterable[Path]) -> Iterator[Path]:
    """The files of ``paths`` that were made or changed after ``start``; a hard link changes when it is made."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink() and path.stat().st_ctime >= start:
                yield path


def written_since(start: float, directory: Path) -> Iterator[Path]:
    """The same for all files below a directory."""
    yield from changed_since(start, (Path(folder, name) for folder, _, names in os.walk(directory) for name in names))


def search_files(start: float, ground: Ground, secret: bytes) -> dict[str, list[str]]:
    """Everything that was written in the ground since, and files in the directories that any program may use."""
    shared = [path for place in ("/dev/shm", "/var/tmp", "/run/lock") for path in Path(place).glob("*")]
    found = {}
    for path in (*written_since(start, ground.base), *changed_since(start, shared)):
        try:
            if hits := search_file(path, secret):
                found[str(path)] = hits
        except OSError:
            continue  # another's
    return found


@dataclass
class Watch:
    """A thread that looks at all processes, and at the small files in ``directory``, again and again."""

    secret: bytes
    directory: Path
    found: set[tuple[str, str]] = field(default_factory=set)
    looks: int = 0
    seen: set[str] = field(default_factory=set)
    _end: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                before = (entry / "cmdline").read_bytes()
                environ = (entry / "environ").read_bytes()
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended, or is another user's
            if words != before:
                continue  # it was executing another program just then
            name = words.replace(b"\0", b" ").decode(errors="replace").strip()
            self.seen.add(name.split(" ")[0])
            self.found.update(
                (name, place) for place, data in (("environ", environ), ("cmdline", words)) if search(data, self.secret)
            )
        for path in written_since(0, self.directory):
            with contextlib.suppress(OSError):
                if path.stat().st_size < SMALL and search(path.read_bytes(), self.secret):
                    self.found.add(("", str(path)))
        self.looks += 1

    def _work(self) -> None:
        while not self._end.wait(0.1):
            self.look()

    @contextlib.contextmanager
    def running(self) -> Iterator["Watch"]:
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()


@dataclass(frozen=True)
class Run:
    """A run with the canary in LUKS_KEY, as a user gives it: what it printed, and where the canary was seen."""

    code: int
    output: bytes
    watch: Watch
    traced: list[str]


def run_with_key(ground: Ground, *words: str, key: bytes = CANARY, trace: Path | None = None) -> Run:
    """``./doitw`` with LUKS_KEY in its environment, watched; with ``trace``, every execve below it is written there."""
    strace = shutil.which("strace") if trace else None
    prefix = (
        [strace, *["-f", "--seccomp-bpf", "-qq", "-v", "-s", "65536", "-e", "trace=execve", "-o"], str(trace)]
        if strace
        else []
    )
    watch = Watch(key, ground.temporary)
    with watch.running():
        process = subprocess.Popen(
            [*prefix, str(ground.project / "doitw"), *words],
            env={**{name.encode(): value.encode() for name, value in ground.environment.items()}, b"LUKS_KEY": key},
            cwd=ground.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    traced = trace.read_text(errors="replace").splitlines() if strace and trace else []
    return Run(process.returncode, output, watch, [line for line in traced if "execve(" in line])


def clean(run: Run) -> None:
    """The canary was where the user put it, and nowhere else."""
    assert search(run.output, run.watch.secret) == []
    assert run.watch.looks > 10
    # What the user started has what the user gave it until it begins anew, as `sh -- doitw`; strace, too.
    first = re.compile(r"(\S*/)?strace .*|/bin/sh \S*/doitw .*")
    assert [where for where in run.watch.found if where[1] != "environ" or not first.fullmatch(where[0])] == []


@pytest.fixture(scope="module")
def ground(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with make_ground(built, tmp_path_factory.mktemp("secrets")) as made:
        yield made


@dataclass(frozen=True)
class Volume:
    """An image that ./doitw setup_luks made with the canary for its key; ``start`` is when that began."""

    ground: Ground
    run: Run
    start: float


@pytest.fixture(scope="module")
def volume(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    start = time.time() - 1
    run = run_with_key(ground, *ground.words, trace=tmp_path_factory.mktemp("trace") / "execve")
    assert run.code == 0, run.output.decode(errors="replace")
    return Volume(ground, run, start)


@pytest.mark.full
def test_setup_luks_leaves_the_key_in_no_process_and_no_file(volume: Volume) -> None:
    header = Luks2.read(volume.ground.luks / "luks.img")
    assert opens(header.data, CANARY)  # that key, and no other, was used
    clean(volume.run)
    assert any("qemu" in name or "ld-linux" in name for name in volume.run.watch.seen)  # the appliance was watched, too
    assert search_files(volume.start, volume.ground, CANARY) == {}
    assert (volume.ground.luks / "luks.img") in set(written_since(volume.start, volume.ground.base))


@pytest.mark.full
def test_no_executed_program_but_doitw_has_the_key(volume: Volume) -> None:
    """By strace: arguments and environment of each. The first is doitw, as the user starts it."""
    if not volume.run.traced:
        pytest.skip("no strace here")
    text = [line for line in volume.run.traced if "canary-8d61" in line]
    assert text == volume.run.traced[:1]  # and the control: that one has it
    programs = {match[1] for line in volume.run.traced if (match := re.search(r'execve\("([^"]*)"', line))}
    assert len(volume.run.traced) > 10 and any("qemu" in name or "ld-linux" in name for name in programs), programs


def emulated(config: VmConfig) -> Mapping[str, object]:
    """What the software secure processor says for any REPORT_DATA about a guest of this VM config."""

    def report(report_data: bytes) -> dict[str, object]:
        assert config.reference is not None
        made = psp(product=config.launch.product).report(
            report_data, launch=config.launch, measurement=config.reference.launch_digest
        )
        table = psp(product=config.launch.product).certificate_table()
        return {"report": base64.b64encode(made).decode(), "certificates": base64.b64encode(table).decode()}

    return {"report": report}


def attest_words(port: int, config: VmConfig) -> list[str]:
    trusted = root(product=config.launch.product)
    return ["attest_luks", "PLATFORM=emulated", f"PORT={port}", f"EMULATED_ROOT={trusted}"]


@pytest.mark.full
def test_attest_luks_leaves_the_key_only_in_the_guest(volume: Volume, tmp_path: Path) -> None:
    ground = volume.ground
    config = read_vm_config(ground.luks / "vm-config-luks.emulated.toml")
    digest = bytes.fromhex((ground.luks / "header.sha256").read_text())
    start = time.time() - 1
    with key_guest(ground.built.keys, tmp_path, digest, **emulated(config)) as guest:  # type: ignore[arg-type]
        run = run_with_key(ground, *attest_words(guest.port, config))
        assert run.code == 0, run.output.decode(errors="replace")
        assert guest.received == [(CANARY, 0)]
    clean(run)
    assert search_files(start, ground, CANARY) == {}
    assert (ground.luks.parent / "run" / "luks" / "attestation_report.emulated.bin") in set(
        written_since(start, ground.base)
    )


@pytest.mark.full
def test_a_wrong_key_is_refused_before_any_contact_with_the_guest_and_not_printed(
    volume: Volume, tmp_path: Path
) -> None:
    ground, wrong = volume.ground, b"canary-8d61 of another disk altogether"
    config = read_vm_config(ground.luks / "vm-config-luks.emulated.toml")
    start = time.time() - 1
    with key_guest(ground.built.keys, tmp_path, bytes(32)) as guest:
        run = run_with_key(ground, *attest_words(guest.port, config), key=wrong)
        assert run.code != 0 and guest.waiting
    said = run.output.decode()
    assert "LUKS_KEY: this key does not open" in said and "no key was sent" in said and "Traceback" not in said
    clean(run)
    assert search_files(start, ground, wrong) == {}


@pytest.mark.parametrize("task", ["setup_luks", "attest_luks"])
def test_a_key_on_the_command_line_is_refused_and_stored_nowhere(ground: Ground, task: str) -> None:
    """The arguments of the process have the key; it is found nowhere else."""
    start = time.time() - 1
    done = ground.doitw(task, f"LUKS_KEY={CANARY.decode()}")
    assert done.returncode != 0 and "command line" in done.stdout and "Traceback" not in done.stdout
    assert search(done.stdout.encode(), CANARY) == []
    assert search_files(start, ground, CANARY) == {}


@pytest.mark.full
def test_a_generated_key_is_only_in_its_file(ground: Ground) -> None:
    start = time.time() - 1
    done = ground.doitw(*ground.words, "LUKS_FREE=17M")
    assert done.returncode == 0, done.stdout
    identity = Luks2.read(ground.luks / "luks.img").uuid
    file = ground.built.config_dir / "volumes" / f"{identity}.key"
    key = file.read_bytes()
    assert len(key) == 32 and file.stat().st_mode & 0o777 == 0o600
    assert search_files(start, ground, key) == {str(file): ["raw"]}
    assert search(done.stdout.encode(), key) == []


@pytest.mark.full
@pytest.mark.parametrize("form", sorted(forms(CANARY)))
def test_control_the_search_finds_a_planted_canary(volume: Volume, form: str) -> None:
    """In each place that is searched, in each form."""
    ground, planted = volume.ground, forms(CANARY)[form]
    start = time.time() - 1
    places = {
        "image": ground.luks / "planted.img",
        "log": ground.built.build / "run" / "luks" / "serial.log",
        "scratch": ground.built.build / ".planted.12345678" / "file",
        "checkout": ground.project / ".cache" / "planted",
        "cache": ground.base / "cache" / "blobs" / "00" / "planted",
        "temporary": ground.temporary / "sevsnp-planted" / "console",
        "home": ground.base / "home" / ".planted",
        "keys": ground.built.config_dir / "planted",
        "shared memory": Path("/dev/shm") / f"planted.{os.getpid()}",
    }
    database = ground.project / "planted.db"
    try:
        for name, path in places.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Over the border between two pieces that are read, in a file with holes.
            with path.open("wb") as stream:
                stream.seek((8 << 20) - 7 if name == "image" else 100)
                stream.write(planted + b"\n")
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("create table t (value)")
            connection.execute("insert into t values (?)", (planted.decode("latin-1") if form != "raw" else planted,))
            connection.commit()
        found = search_files(start, ground, CANARY)
        assert found.keys() >= {str(path) for path in (*places.values(), database)}
        assert all(form in hits for hits in found.values())
        watch = Watch(CANARY, ground.temporary)
        watch.look()
        assert {place for _, place in watch.found} == {str(places["temporary"])}
        for variables, words, place in (({b"A": planted}, [], "environ"), ({}, [planted], "cmdline")):
            with subprocess.Popen(
                [sys.executable, "-c", "print(1, flush=True); input()", *words],
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as process:
                assert process.stdout and process.stdout.readline()
                watch = Watch(CANARY, ground.base / "home" / "nowhere")
                watch.look()
                assert {found for _, found in watch.found} == {place}
                process.communicate(b"\n")
    finally:
        for path in (*places.values(), database):
            path.unlink(missing_ok=True)
        for directory in (places["scratch"].parent, places["temporary"].parent):
            directory.rmdir()
