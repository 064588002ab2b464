"""The initramfs as built: its archives as the kernel would read them, and real modules in an order that loads."""

import stat
from pathlib import Path

from sevsnp.images.kernel_modules import ModuleTree, modinfo
from tests.conftest import Built
from tests.unit.newc import Member, read_joined

PLACE = "usr/lib/sevsnp/modules"


def unpacked(path: Path) -> dict[str, Member]:
    """What the kernel makes of an initramfs: later archives over earlier ones."""
    return {member.name: member for archive in read_joined(path.read_bytes()) for member in archive}


def test_layers(built: Built) -> None:
    counts = {
        name: len(read_joined((built.build / f"{name}.cpio.zst").read_bytes()))
        for name in ("initramfs", "initramfs.emulated", "initramfs.plain")
    }
    assert counts == {"initramfs": 3, "initramfs.emulated": 5, "initramfs.plain": 3}


def test_the_emulated_attester_is_in_the_emulated_one_only(built: Built) -> None:
    production, emulated = (unpacked(built.build / f"{name}.cpio.zst") for name in ("initramfs", "initramfs.emulated"))
    assert not [name for name in production if "emulated" in name]
    added = {name for name in set(emulated) - set(production) if stat.S_ISREG(emulated[name].mode)}
    modules = {name for name in added if name.endswith(".ko")}  # none where the kernel has the channel built in
    assert added - modules == {"usr/lib/sevsnp/emulated_provider.py", f"{PLACE}/emulated.list"}
    assert f"{PLACE}/virtio_console.ko" in modules or not modules
    assert all(emulated[name] == member for name, member in production.items() if stat.S_ISREG(member.mode))


def test_every_module_comes_after_what_it_depends_on(built: Built) -> None:
    files = unpacked(built.build / "initramfs.emulated.cpio.zst")
    release = (built.build / "kernel" / "version").read_text().strip()
    tree = ModuleTree(built.build / "kernel" / "lib" / "modules" / release)
    lists = (files[f"{PLACE}/{name}.list"].data.decode() for name in ("base", "emulated"))
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


def test_who_owns_what(built: Built) -> None:
    for member in unpacked(built.build / "initramfs.emulated.cpio.zst").values():
        assert (member.uid, member.mtime) == (0, 0), member.name
        assert not member.mode & stat.S_IWOTH or member.mode & (stat.S_ISVTX | stat.S_IFLNK), member.name
    init = unpacked(built.build / "initramfs.cpio.zst")["init"]
    assert stat.filemode(init.mode) == "-rwxr-xr-x"
    assert init.data == (built.project / "initramfs" / "init").read_bytes()
