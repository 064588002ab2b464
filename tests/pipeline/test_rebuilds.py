# SPDX-License-Identifier: Apache-2.0
"""What an edit rebuilds, and what it leaves alone, down to the end of the pipeline: tables from edit to tasks.

What each edit makes outdated by itself, for every input of every task, is in test_matrix.py.
"""

import dataclasses
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sevsnp.system.files import sha256_file
from tests.conftest import GOALS, Built
from tests.support.copies import copy_built, leavings, made, one_line, ran, restored
from tests.support.replacing import replaced_once

CMDLINES = {"verity cmdline", "verity cmdline emulated"}
CONFIGS = {"verity config", "verity config emulated"}
MODULES = {"modules layer", "emulated modules layer"}
# All that comes after both VM configs changed.
MEASURED = CONFIGS | {"host_bundle"}

Edit = Callable[[Path], object]


def append(name: str, text: str = "\n# a remark\n") -> Edit:
    def edit(project: Path) -> None:
        with (project / name).open("a") as stream:
            stream.write(text)

    return edit


def insert(name: str, after: str, line: str) -> Edit:
    """Add a line to a file after the line ``after``."""

    def edit(project: Path) -> None:
        text = replaced_once((project / name).read_text(), f"{after}\n", f"{after}\n{line}\n")
        (project / name).write_text(text)

    return edit


def replace(name: str, old: str, new: str) -> Edit:
    def edit(project: Path) -> None:
        text = replaced_once((project / name).read_text(), old, new)
        (project / name).write_text(text)

    return edit


def delete(name: str) -> Edit:
    def edit(project: Path) -> None:
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def rewrite(name: str, change: Callable[[Path], object]) -> Edit:
    """Edit a copy in its place, and keep its time: what is built is a hard link to what others need."""

    def edit(project: Path) -> None:
        path, new = project / name, project / "edited"
        shutil.copy2(path, new)
        change(new)
        os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        new.replace(path)

    return edit


def damage(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(bytes(byte ^ 1 for byte in path.read_bytes()[:16]))


def touch(name: str) -> Edit:
    return lambda project: os.utime(project / name)


SOURCES: dict[str, tuple[Edit, set[str]]] = {
    "init": (
        append("initramfs/init"),
        {"init layer", "initramfs", "emulated initramfs"} | MEASURED,
    ),
    "init, only touched": (touch("initramfs/init"), set()),
    "emulated attester": (
        append("initramfs/emulated/emulated_provider.py"),
        {"emulated layer", "emulated initramfs", "verity config emulated", "host_bundle", "build_tools"},
    ),
    # A list that says the same makes the same layers, and what follows stays as it is.
    "remark in the list of modules": (append("initramfs/modules.yaml"), MODULES),
    "one module more": (
        insert("initramfs/modules.yaml", "  - virtio_console", "  - virtio_rng"),
        MODULES | {"emulated initramfs", "verity config emulated", "host_bundle"},
    ),
    "template of the VM configs": (append("templates/vm-config.toml.j2"), MEASURED),
    "the bundle's script": (append("templates/bundle-run"), {"host_bundle"}),
    "remark in config.yaml": (append("config.yaml"), set()),
    "policy in config.yaml": (replace("config.yaml", "policy: 0x30000", "policy: 0x20000"), MEASURED),
}
SLOW: dict[str, tuple[Edit, set[str]]] = {
    "one file more in the guest": (
        append("guest-vm/files/etc/motd", "hello\n"),
        {"guest rootfs", "create_new_vm", "verity root"} | CMDLINES | MEASURED,
    ),
    "init of the plain guest": (
        append("initramfs/plain-init"),
        {"plain layer", "plain initramfs", "create_new_vm"},
    ),
    "a guest tool": (
        append("initramfs/get_report.py"),
        {"init layer", "initramfs", "emulated initramfs", "build_tools"} | MEASURED,
    ),
    "the maker of disks": (append("sevsnp/images/disk.py", "\nMORE = 0\n"), {"create_new_vm"}),
}

# One statement in a module reruns what is made by it; the bytes are the same, so nothing that follows runs.
LIBRARY: dict[str, set[str]] = {
    "sevsnp/commands/tools.py": {"build_tools"},
    # The bundle carries this along.
    "sevsnp/host/bundle_run.py": {"host_bundle"},
    "sevsnp/emulation/service.py": {"host_bundle"},
    # … and this, which the verifiers in build/bin need too.
    "sevsnp/vm_config/cmdline.py": CMDLINES | CONFIGS | {"host_bundle", "build_tools"},
    # Nothing is made by these.
    "sevsnp/e2e/run.py": set(),
    "README.md": set(),
}
# A remark reruns nothing but what the module itself is in.
REMARKS: dict[str, set[str]] = {
    "sevsnp/packages/steps.py": set(),
    "sevsnp/images/initramfs.py": set(),
    # The bundle has this one, which every task imports.
    "sevsnp/errors.py": {"host_bundle"},
    # The initramfs has this one.
    "sevsnp/attestation/report_data.py": {"init layer", "initramfs", "emulated initramfs"} | MEASURED,
    "sevsnp/commands/tools.py": set(),
}

# The bytes come back as they were, so nothing that follows runs. What each does alone is in the matrix.
HURT: dict[str, dict[str, Edit]] = {
    "deleted": {
        "initramfs": delete("build/initramfs.cpio.zst"),
        "init layer": delete("build/layers/init.cpio.zst"),
        "verity root": delete("build/verity/roothash.txt"),  # one output of three
        "verity config emulated": delete("build/verity/vm-config-verity.emulated.toml"),
        "host_bundle": delete("build/host-bundle"),
        "build_tools": delete("build/bin/get_report"),
    },
    "edited, size and time kept": {
        "verity config": rewrite("build/verity/vm-config-verity.toml", damage),
        "verity root": rewrite("build/verity/verity.img", damage),
        "build_tools": rewrite("build/bin/get_report", damage),
        "host_bundle": rewrite("build/host-bundle/stage-1.efi", damage),
        "packages": rewrite("build/snp-release/bin/qemu-system-x86_64", damage),
        "unpack_kernel": rewrite("build/kernel/vmlinuz", damage),
    },
    "with another mode, or something planted": {
        "build_tools": rewrite("build/bin/get_report", lambda path: path.chmod(0o600)),
        "init layer": rewrite("build/layers/init.cpio.zst", lambda path: path.chmod(0o666)),
        "host_bundle": lambda project: (project / "build/host-bundle/evil").write_bytes(b""),
    },
}

SETTINGS: dict[str, set[str]] = {
    "CPUS=2": {"acpi tables", "stage"} | CONFIGS | {"host_bundle"},
    "WRITABLE=copy": CMDLINES | MEASURED,
    "POLICY=0x20000": MEASURED,
    "CPUS=1": set(),  # the default
    "MEMORY=4G": set(),
    "PLATFORM=emulated": set(),
}


# The edits that every run of the tests tries; the matrix has the tasks of all of them.
EDITS = {"init", "init, only touched", "remark in the list of modules", "one module more", "policy in config.yaml"}


def every_run(table: Mapping[str, object], rows: set[str]) -> list[Any]:
    """The names in a table, those that are not among ``rows`` only for `test --full`."""
    assert rows < set(table)
    return [pytest.param(name, marks=[] if name in rows else pytest.mark.full) for name in table]


@pytest.fixture(scope="module")
def copy(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    directory = tmp_path_factory.mktemp("rebuilds")
    copied = copy_built(built, directory / "project")
    first = ran(copied.doit(*GOALS).stdout)
    # The wrappers of the verifiers name the directory of the project; nothing else does.
    assert first == {"build_tools"}
    yield copied
    shutil.rmtree(directory)


@pytest.fixture
def settled(copy: Built) -> Built:
    """The copy with everything up to date, whatever the tests before did to it."""
    copy.doit(*GOALS)
    return copy


def test_a_second_run_does_nothing(settled: Built) -> None:
    done = settled.doit(*GOALS, PYTHONPROFILEIMPORTTIME="1").stdout
    assert ran(done) == set()
    # It has looked at the keys, and loads nothing that reads keys: that would take a fifth of its time.
    loaded = set(re.findall(r"^import time:.*\| +(\S+)$", done, re.MULTILINE))
    assert "sevsnp.store.digests" in loaded and not loaded & {"cryptography", "jinja2", "sevsnp.keys.pairs"}


def test_a_run_that_has_nothing_to_do_notices_changed_keys(settled: Built, tmp_path: Path) -> None:
    own = dataclasses.replace(settled, config_dir=shutil.copytree(settled.config_dir, tmp_path / "keys"))
    owner = own.keys.owner_private
    assert [ran(own.doit("_keys").stdout) for _ in range(3)][2] == set()
    owner.write_bytes(owner.read_bytes()[:-40])
    assert "owner_key.pem: expected" in one_line(own.doit("_keys", check=False).stdout)
    owner.chmod(0o644)
    assert "owner_key.pem: mode 0644" in one_line(own.doit("_keys", check=False).stdout)


@pytest.mark.parametrize("name", every_run(SOURCES, EDITS))
def test_an_edit_of_a_source_rebuilds_the_tasks_of_the_table(settled: Built, name: str) -> None:
    edit, expected = SOURCES[name]
    edit(settled.project)
    assert ran(settled.doit(*GOALS).stdout) == expected


@pytest.mark.full
@pytest.mark.parametrize("name", SLOW)
def test_an_edit_of_a_further_source_rebuilds_the_tasks_of_the_table(settled: Built, name: str) -> None:
    edit, expected = SLOW[name]
    edit(settled.project)
    assert ran(settled.doit(*GOALS).stdout) == expected
    assert ran(settled.doit(*GOALS).stdout) == set()


def test_an_edit_of_the_library_rebuilds_the_tasks_of_the_table(settled: Built) -> None:
    found = {}
    for name in LIBRARY:
        append(name, "\nMORE = 0\n")(settled.project)
        found[name] = ran(settled.doit(*GOALS).stdout)
    assert found == LIBRARY


def test_a_comment_in_the_library_rebuilds_the_tasks_of_the_table(settled: Built) -> None:
    found = {}
    for name in REMARKS:
        append(name)(settled.project)
        found[name] = ran(settled.doit(*GOALS).stdout)
    assert found == REMARKS


@pytest.mark.parametrize("how", every_run(HURT, {"edited, size and time kept"}))
def test_damaged_outputs_are_made_again(settled: Built, how: str) -> None:
    good = built_files(settled)
    for edit in HURT[how].values():
        before = built_files(settled, digests=False)
        edit(settled.project)
        assert built_files(settled, digests=False) != before
    out = settled.doit(*GOALS).stdout
    assert ran(out) == set(HURT[how])
    # Only what names this very directory is not in the cache.
    assert made(out) == {"build_tools"}
    assert built_files(settled) == good


def built_files(copy: Built, *, digests: bool = True) -> dict[str, tuple[int, int, int | str]]:
    """What is built: modes and sizes, with the digests of what is small or damaged here, or else with inodes."""
    found: dict[str, tuple[int, int, int | str]] = {}
    for path in copy.build.rglob("*"):
        if path.is_file() and not path.is_symlink() and copy.build / "log" not in path.parents:
            status = path.stat()
            read = status.st_size < 1 << 20 or path.name in ("vmlinuz", "verity.img")
            content = (sha256_file(path) if read else "") if digests else status.st_ino
            found[str(path)] = (status.st_mode, status.st_size, content)
    return found


def test_a_reverted_edit_is_restored_from_the_cache(settled: Built) -> None:
    name = settled.project / "initramfs/init"
    before = name.read_bytes()
    append("initramfs/init", f"\n# {uuid.uuid4()}\n")(settled.project)
    expected = SOURCES["init"][1]
    there = settled.doit(*GOALS).stdout
    assert made(there) == ran(there) == expected
    name.write_bytes(before)
    back = settled.doit(*GOALS).stdout
    assert restored(back) == ran(back) == expected


def test_an_earlier_value_of_a_setting_is_restored_from_the_cache(settled: Built) -> None:
    settled.doit(*GOALS, "MIN_TCB=snp:7")
    for words in ((), ("MIN_TCB=snp:7",)):
        out = settled.doit(*GOALS, *words).stdout
        assert restored(out) == ran(out) == MEASURED


def test_an_edit_that_does_not_change_an_output_runs_no_later_task(settled: Built) -> None:
    """Early cut-off: the comment is new, so the layers are made again; with the same bytes, so no other task runs."""
    append("initramfs/modules.yaml", f"\n# {uuid.uuid4()}\n")(settled.project)
    out = settled.doit(*GOALS).stdout
    assert made(out) == ran(out) == MODULES


def test_modes_of_the_checkout_are_in_no_artefact(settled: Built) -> None:
    """A umask decides these modes: no task runs because of them, and an output made again has the same bytes."""
    tasks = {"init layer", "emulated layer", "plain layer", "guest rootfs", "host_bundle"} | CONFIGS
    called = sorted(f"_{name.replace(' ', '_')}" if " " in name else name for name in tasks)
    before = built_files(settled)
    for folder in ("initramfs", "guest-vm", "templates", "sevsnp/attestation"):
        for path in (settled.project / folder, *(settled.project / folder).rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o700)
    assert ran(settled.doit(*GOALS).stdout) == set()
    settled.doit("forget", *called)
    assert made(settled.doit(*called, CACHE="off").stdout) == tasks
    assert built_files(settled) == before
    assert ran(settled.doit(*GOALS).stdout) == set()


@pytest.mark.parametrize("word", every_run(SETTINGS, {"POLICY=0x20000", "MEMORY=4G", "PLATFORM=emulated"}))
def test_settings_on_the_command_line(settled: Built, word: str) -> None:
    # The policy is no longer the default if the edit of config.yaml came before.
    replaced = word == "POLICY=0x20000" and "policy: 0x20000" in (settled.project / "config.yaml").read_text()
    word = "POLICY=0x30000" if replaced else word
    assert ran(settled.doit(*GOALS, word).stdout) == SETTINGS.get(word, MEASURED)


def test_a_setting_means_the_same_in_the_environment(settled: Built) -> None:
    assert ran(settled.doit("initramfs", WRITABLE="copy").stdout) == set()
    assert ran(settled.doit("_verity_cmdline", WRITABLE="copy").stdout) == {"verity cmdline"}
    assert ran(settled.doit("_verity_cmdline", "WRITABLE=copy").stdout) == set()


BAD: dict[str, tuple[Edit, str, str]] = {
    "module": (
        insert("initramfs/modules.yaml", "base:", "  - nonsuch"),
        "setup_verity",
        "initramfs/modules.yaml: base: no module nonsuch in 6",
    ),
    "source": (
        insert("initramfs/files.yaml", "init:", "  - { path: x, source: nonsuch }"),
        "setup_verity",
        "initramfs/files.yaml: init: nonsuch: no such file",
    ),
    "not YAML": (append("initramfs/files.yaml", "\n]["), "setup_verity", "initramfs/files.yaml: "),
    "key": (
        append("initramfs/files.yaml", "\nothers: []\n"),
        "setup_verity",
        "initramfs/files.yaml: unknown key 'others'",
    ),
    "no list": (delete("initramfs/modules.yaml"), "setup_verity", "initramfs/modules.yaml"),
    "user": (
        append("guest-vm/guest.yaml", "\nnonsuch: 1\n"),
        "create_new_vm",
        "guest-vm/guest.yaml: document: unknown key 'nonsuch'",
    ),
    "deny-list": (
        append("guest-vm/denied.yaml", "\ntraces:\n  log:\n    - var/log\n"),
        "setup_verity",
        "traces is given twice",
    ),
    "setting": (append("config.yaml", "\nnonsuch: 1\n"), "setup_verity", "config.yaml: unknown setting 'nonsuch'"),
    "value": (
        replace("config.yaml", "cpus: 1 ", "cpus: 0 "),
        "setup_verity",
        "CPUS=0 (from config.yaml): expected a number of vCPUs from 1 to 255",
    ),
}


@pytest.mark.parametrize("name", every_run(BAD, {"module", "key", "value"}))
def test_bad_entries_are_refused_by_name_and_harm_nothing(settled: Built, name: str) -> None:
    edit, goal, words = BAD[name]
    kept = {
        path: path.read_bytes()
        for folder in ("initramfs", "guest-vm", ".")
        for path in (settled.project / folder).glob("*.yaml")
    }
    edit(settled.project)
    try:
        failed = settled.doit(goal, check=False)
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    assert failed.returncode != 0
    line = one_line(failed.stdout)
    assert words in line
    assert leavings(settled.project) == []
    # What was there is there still. Only what failed runs again, and makes the same.
    again = ran(settled.doit(*GOALS).stdout)
    assert again <= {line.removeprefix("✗ ").partition(":")[0]}
