"""What an edit rebuilds, and what it leaves alone: a table from edit to tasks."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import GOALS, Built
from tests.pipeline.copies import copy_built, leavings, one_line, ran

CMDLINES = {"verity cmdline", "verity cmdline emulated"}
CONFIGS = {"verity config", "verity config emulated"}
MODULES = {"modules layer", "emulated modules layer"}
# All that comes after both VM configs changed.
MEASURED = CONFIGS | {"host_bundle"}

Edit = Callable[[Path], None]


def append(name: str, text: str = "\n# a remark\n") -> Edit:
    def edit(project: Path) -> None:
        with (project / name).open("a") as stream:
            stream.write(text)

    return edit


def insert(name: str, after: str, line: str) -> Edit:
    """Add a line to a file after the line ``after``."""

    def edit(project: Path) -> None:
        text = (project / name).read_text()
        assert text.count(f"{after}\n") == 1
        (project / name).write_text(text.replace(f"{after}\n", f"{after}\n{line}\n"))

    return edit


def replace(name: str, old: str, new: str) -> Edit:
    def edit(project: Path) -> None:
        text = (project / name).read_text()
        assert text.count(old) == 1
        (project / name).write_text(text.replace(old, new))

    return edit


def delete(name: str) -> Edit:
    def edit(project: Path) -> None:
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


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
        {"emulated layer", "emulated initramfs", "verity config emulated", "host_bundle"},
    ),
    # A list that says the same makes the same layers, and what follows stays as it is.
    "remark in the list of modules": (append("initramfs/modules.yaml"), MODULES),
    "one module more": (
        insert("initramfs/modules.yaml", "  - virtio_console", "  - virtio_rng"),
        MODULES | {"emulated initramfs", "verity config emulated", "host_bundle"},
    ),
    "one file more in the guest": (
        append("guest-vm/files/etc/motd", "hello\n"),
        {"guest rootfs", "create_new_vm", "verity image", "verity tree"} | CMDLINES | MEASURED,
    ),
    "template of the VM configs": (append("templates/vm-config.toml.j2"), MEASURED),
    "the bundle's script": (append("templates/bundle-run"), {"host_bundle"}),
    "remark in config.yaml": (append("config.yaml"), set()),
    "policy in config.yaml": (replace("config.yaml", "policy: 0x30000", "policy: 0x20000"), MEASURED),
}
SLOW: dict[str, tuple[Edit, set[str]]] = {
    "init of the plain guest": (
        append("initramfs/plain-init"),
        {"plain layer", "plain initramfs", "create_new_vm"},
    ),
    "a guest tool": (
        append("initramfs/get_report.py"),
        {"init layer", "initramfs", "emulated initramfs", "build_tools"} | MEASURED,
    ),
    "the maker of disks": (append("sevsnp/images/disk.py"), {"create_new_vm"}),
}

# One line in a module reruns what is made by it; the bytes are the same, so nothing that follows runs.
LIBRARY: dict[str, set[str]] = {
    "sevsnp/tools.py": {"build_tools"},
    # The bundle carries this along.
    "sevsnp/vm/host.py": {"host_bundle"},
    # … and these, which the verifiers in build/bin need too.
    "sevsnp/vm/cmdline.py": CMDLINES | CONFIGS | {"host_bundle", "build_tools"},
    "sevsnp/emulation/service.py": {"host_bundle", "build_tools"},
    # Nothing is made by these.
    "sevsnp/e2e.py": set(),
    "README.md": set(),
}

# The bytes come back as they were, so nothing that follows runs.
DELETED: dict[str, set[str]] = {
    "build/initramfs.cpio.zst": {"initramfs"},
    "build/layers/init.cpio.zst": {"init layer"},
    "build/verity/roothash.txt": {"verity tree"},
    "build/verity/vm-config-verity.emulated.toml": {"verity config emulated"},
    "build/host-bundle": {"host_bundle"},
    "build/bin/get_report": {"build_tools"},
}

SETTINGS: dict[str, set[str]] = {
    "CPUS=2": CMDLINES | MEASURED,  # more than one vCPU needs ACPI
    "WRITABLE=copy": CMDLINES | MEASURED,
    "POLICY=0x20000": MEASURED,
    "CPUS=1": set(),  # the default
    "MEMORY=4G": set(),
    "PLATFORM=emulated": set(),
}


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
    assert ran(settled.doit(*GOALS).stdout) == set()


@pytest.mark.parametrize("name", SOURCES)
def test_sources(settled: Built, name: str) -> None:
    edit, expected = SOURCES[name]
    edit(settled.project)
    assert ran(settled.doit(*GOALS).stdout) == expected


@pytest.mark.full
@pytest.mark.parametrize("name", SLOW)
def test_more_sources(settled: Built, name: str) -> None:
    edit, expected = SLOW[name]
    edit(settled.project)
    assert ran(settled.doit(*GOALS).stdout) == expected
    assert ran(settled.doit(*GOALS).stdout) == set()


def test_library(settled: Built) -> None:
    found = {}
    for name in LIBRARY:
        append(name)(settled.project)
        found[name] = ran(settled.doit(*GOALS).stdout)
    assert found == LIBRARY


def test_deleted_targets(settled: Built) -> None:
    found = {}
    for name in DELETED:
        delete(name)(settled.project)
        found[name] = ran(settled.doit(*GOALS).stdout)
        assert (settled.project / name).exists()
    assert found == DELETED


@pytest.mark.parametrize("word", SETTINGS)
def test_settings_on_the_command_line(settled: Built, word: str) -> None:
    # The policy is no longer the default if the edit of config.yaml came before.
    replaced = word == "POLICY=0x20000" and "policy: 0x20000" in (settled.project / "config.yaml").read_text()
    word = "POLICY=0x30000" if replaced else word
    assert ran(settled.doit(*GOALS, word).stdout) == SETTINGS.get(word, MEASURED)


def test_a_setting_means_the_same_in_the_environment(settled: Built) -> None:
    assert ran(settled.doit("initramfs", CPUS="2").stdout) == set()
    assert ran(settled.doit("_verity_cmdline", CPUS="2").stdout) == {"verity cmdline"}
    assert ran(settled.doit("_verity_cmdline", "CPUS=2").stdout) == set()


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
    "setting": (append("config.yaml", "\nnonsuch: 1\n"), "setup_verity", "config.yaml: unknown setting 'nonsuch'"),
    "value": (
        replace("config.yaml", "cpus: 1 ", "cpus: 0 "),
        "setup_verity",
        "CPUS=0 (from config.yaml): expected a number of vCPUs from 1 to 255",
    ),
}


@pytest.mark.parametrize("name", BAD)
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
