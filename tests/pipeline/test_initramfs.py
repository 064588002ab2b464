# SPDX-License-Identifier: Apache-2.0
"""The initramfs as built: its archives as the kernel would read them, and real modules in an order that loads."""

import stat
import subprocess
from pathlib import Path

import pytest

from sevsnp.images.kernel_modules import ModuleTree, modinfo
from sevsnp.packages.wrappers import LIBRARIES, LOADER
from tests.conftest import Built
from tests.support.newc import Member, read_joined

PLACE = "usr/lib/sevsnp/modules"


def unpacked(path: Path) -> dict[str, Member]:
    """What the kernel makes of an initramfs: later archives over earlier ones."""
    return {member.name: member for archive in read_joined(path.read_bytes()) for member in archive}


def test_layers(built: Built) -> None:
    counts = {
        name: len(read_joined((built.build / f"{name}.cpio.zst").read_bytes()))
        for name in ("initramfs", "initramfs.emulated", "initramfs.plain", "initramfs.appliance")
    }
    assert counts == {"initramfs": 3, "initramfs.emulated": 5, "initramfs.plain": 3, "initramfs.appliance": 5}


def test_guest_and_appliance_have_no_programs_of_each_other(built: Built) -> None:
    """A guest needs no job that writes volumes, and the appliance needs no agent."""
    guest, appliance = (unpacked(built.build / f"{name}.cpio.zst") for name in ("initramfs", "initramfs.appliance"))
    assert not [name for name in guest if "appliance" in name or name.endswith("/lvm")]
    assert "usr/sbin/lvm" in appliance
    assert not [name for name in appliance if name.endswith(("agent.py", "boot_words.py", "bare_luks.py"))]
    assert appliance["init"].data == (built.project / "initramfs" / "appliance" / "init").read_bytes()


def test_only_the_emulated_initramfs_has_the_emulated_attester(built: Built) -> None:
    production, emulated = (unpacked(built.build / f"{name}.cpio.zst") for name in ("initramfs", "initramfs.emulated"))
    assert not [name for name in production if "emulated" in name]
    added = {name for name in set(emulated) - set(production) if stat.S_ISREG(emulated[name].mode)}
    modules = {name for name in added if name.endswith(".ko")}  # none where the kernel has the channel built in
    assert added - modules == {"usr/lib/sevsnp/emulated_provider.py", f"{PLACE}/emulated.list"}
    assert f"{PLACE}/virtio_console.ko" in modules or not modules
    assert all(emulated[name] == member for name, member in production.items() if stat.S_ISREG(member.mode))


@pytest.mark.parametrize(
    ("initramfs", "further"),
    [
        ("initramfs", "luks"),
        ("initramfs.emulated", "emulated"),
        ("initramfs.appliance", "luks"),
        ("initramfs.appliance", "appliance"),
    ],
)
def test_every_module_comes_after_its_dependencies(built: Built, initramfs: str, further: str) -> None:
    """In the list ``base`` and one further list, which are loaded one after the other."""
    files = unpacked(built.build / f"{initramfs}.cpio.zst")
    release = (built.build / "kernel" / "version").read_text().strip()
    tree = ModuleTree(built.build / "kernel" / "lib" / "modules" / release)
    lists = (files[f"{PLACE}/{name}.list"].data.decode() for name in ("base", further))
    order = [line.removeprefix("/") for text in lists for line in text.split()]
    assert len(order) == len(set(order)) > 10
    loaded: set[str] = set()
    for path in order:
        info = modinfo(files[path].data, Path(path))
        assert info["vermagic"].startswith(f"{release} ")
        missing = {name.replace("-", "_") for name in info["depends"].split(",") if name} - loaded - tree.builtin
        assert not missing, path
        loaded.add(Path(path).stem)
    assert {"dm_verity", "virtio_blk", "overlay"} <= loaded | tree.builtin
    wanted = {"luks": {"dm_crypt", "dm_integrity", "xts", "authenc"}, "appliance": {"xfs", "btrfs", "dm_mirror"}}
    assert wanted.get(further, set()) <= loaded | tree.builtin


def test_files_have_the_expected_owner_time_and_mode(built: Built) -> None:
    for member in unpacked(built.build / "initramfs.emulated.cpio.zst").values():
        assert (member.uid, member.mtime) == (0, 0), member.name
        assert not member.mode & stat.S_IWOTH or member.mode & (stat.S_ISVTX | stat.S_IFLNK), member.name
    init = unpacked(built.build / "initramfs.cpio.zst")["init"]
    assert stat.filemode(init.mode) == "-rwxr-xr-x"
    assert init.data == (built.project / "initramfs" / "init").read_bytes()


# What the sources import, and what reads names of partitions, reports errors, and answers a wrong option.
SCRIPT = """
import argparse, importlib, os, sys, threading, traceback
sys.path.insert(0, os.path.join(sys.argv[1], "usr/lib/sevsnp"))
for name in sys.argv[2:]:
    importlib.import_module(name)
for name in ("ascii", "latin-1", "utf-8", "utf-16-le"):
    open("/dev/null", encoding=name).close()
try:
    argparse.ArgumentParser(prog="x").parse_args(["--wrong"])
except SystemExit:
    pass
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
traceback.format_exc()
print(*(each.__file__ for each in sys.modules.values() if getattr(each, "__file__", None)), sep="\\n")
"""


def python_of(files: dict[str, Member], tree: Path) -> subprocess.CompletedProcess[str]:
    """Unpack ``files`` below ``tree``, and load everything in usr/lib/sevsnp with their Python and no other file."""
    for name, member in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISLNK(member.mode):
            path.symlink_to(member.data.decode())
        elif stat.S_ISREG(member.mode):
            path.write_bytes(member.data)
            path.chmod(member.mode & 0o777)
    ours = (Path(name).relative_to("usr/lib/sevsnp") for name in files if name.startswith("usr/lib/sevsnp/"))
    modules = sorted(".".join(path.with_suffix("").parts) for path in ours if path.suffix == ".py")
    assert len(modules) > 5
    words: list[str | Path] = [tree / LOADER, "--inhibit-cache", "--library-path", tree / LIBRARIES]
    words += [tree / "usr/bin/python3", "-ISB", "-c", SCRIPT, tree, *modules]
    return subprocess.run(words, env={}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["initramfs.emulated", "initramfs.appliance"])
def test_the_listed_modules_of_python_are_enough(built: Built, tmp_path: Path, name: str) -> None:
    """All of ours can be loaded, and from byte code alone. Control: without one listed module, the loading fails."""
    files = unpacked(built.build / f"{name}.cpio.zst")
    library = {path for path in files if path.startswith("usr/lib/python3.") and stat.S_ISREG(files[path].mode)}
    assert {Path(path).suffix for path in library} == {".pyc", ".so"}
    done = python_of(files, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert "x: error: unrecognized arguments: --wrong" in done.stderr and "ZeroDivisionError" in done.stderr
    assert all(path.startswith(f"{tmp_path}/whole/usr/lib/") for path in done.stdout.splitlines())
    (one,) = (path for path in library if path.endswith("/subprocess.pyc" if "appliance" in name else "/ssl.pyc"))
    lacking = python_of({path: files[path] for path in files if path != one}, tmp_path / "lacking")
    assert lacking.returncode and "ModuleNotFoundError" in lacking.stderr
