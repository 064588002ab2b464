# SPDX-License-Identifier: Apache-2.0
"""A second build in another directory and another environment gives the same bytes."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.system.files import remove_tree
from tests.conftest import BUILD_SECONDS, GOALS, Built

CHUNK = 1 << 20
# What is measured, and what it is made from.
FILES = (
    "layers/base.cpio.zst",
    "layers/modules.cpio.zst",
    "layers/init.cpio.zst",
    "layers/emulated-modules.cpio.zst",
    "layers/emulated.cpio.zst",
    "layers/plain.cpio.zst",
    "initramfs.cpio.zst",
    "initramfs.emulated.cpio.zst",
    "initramfs.plain.cpio.zst",
    "kernel/vmlinuz",
    "boot/stage.bin",
    "boot/acpi-1.bin",
    "boot/stage-1.efi",
    "firmware/OVMF.fd",
    "guest/packages.tar",
    "guest/rootfs.tar",
    "guest/sevsnptest.qcow2",
    "verity/verity.img",
    "verity/hash-tree.img",
    "verity/roothash.txt",
    "verity/cmdline",
    "verity/cmdline.emulated",
    "verity/vm-config-verity.toml",
    "verity/vm-config-verity.emulated.toml",
    "bin/get_report",
)


def difference(one: Path, other: Path) -> str:
    """Where two files differ first, in words; an empty string where they do not."""
    sizes = one.stat().st_size, other.stat().st_size
    place = 0
    with one.open("rb") as left, other.open("rb") as right:
        while (a := left.read(CHUNK)) == (b := right.read(CHUNK)):
            if not a:
                return ""
            place += len(a)
    place += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{one.name}: first differing byte at {place:#x}, sizes {sizes[0]} and {sizes[1]}"


def differences(one: Path, other: Path, names: tuple[str, ...]) -> list[str]:
    return list(filter(None, (difference(one / name, other / name) for name in names)))


# Read by every Python of the second build: what lists a directory gives it in the reverse order of the names.
REVERSED = """
import os

_listdir, _scandir = os.listdir, os.scandir


class Reversed:
    def __init__(self, *arguments):
        with _scandir(*arguments) as found:
            self._found = iter(sorted(found, key=lambda entry: entry.name, reverse=True))

    def __iter__(self):
        return self._found

    def __next__(self):
        return next(self._found)

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        self.close()

    def close(self):
        pass


os.listdir = lambda *arguments: sorted(_listdir(*arguments), reverse=True)
os.scandir = Reversed
"""
USER = 4711
# Root becomes another user, who has subordinate ids, as far as this process and its children can see: all of it is
# mounted for them alone. Python may be where only root can go; it is shown in a new directory of the same name.
AS_USER = """
set -e
asked=$(umask)
umask 022
base=$1 hidden=$2
for name in passwd group subuid subgid; do mount --bind "$base/etc/$name" "/etc/$name"; done
if [ -n "$hidden" ]; then
    for number in 3 4; do
        eval "shown=\\${$number}"
        mkdir -p "$base/shown/$number"
        mount --bind "$shown" "$base/shown/$number"
    done
    mount -t tmpfs -o mode=755 none "$hidden"
    for number in 3 4; do
        eval "shown=\\${$number}"
        [ -e "$shown" ] || { mkdir -p "$shown"; mount --bind "$base/shown/$number" "$shown"; }
    done
fi
shift 4
umask "$asked"
exec setpriv --reuid 4711 --regid 4711 --clear-groups -- "$@"
"""


def as_another_user(base: Path, home: Path) -> list[str]:
    """The words before a command that run it as another user. Root is one that can become another."""
    (base / "etc").mkdir()
    for name, line in (
        ("passwd", f"odd:x:{USER}:{USER}:Odd:{home}:/bin/sh"),
        ("group", f"odd:x:{USER}:"),
        ("subuid", "odd:1000000:65536"),
        ("subgid", "odd:1000000:65536"),
    ):
        there = Path("/etc", name)
        (base / "etc" / name).write_text(f"{there.read_text() if there.exists() else ''}{line}\n")
        (base / "etc" / name).chmod(0o644)
    shown = (Path(sys.prefix), Path(sys.base_prefix))
    hidden = sorted({str(folder) for path in shown for folder in path.parents if not folder.stat().st_mode & 0o001})
    assert not base.is_relative_to(hidden[0] if hidden else "/nowhere")
    words = [base, hidden[0] if hidden else "", *shown]
    return ["unshare", "--mount", "--", "sh", "-c", AS_USER, "sh", *map(str, words)]


@pytest.fixture(scope="module")
def second(built: Built) -> Iterator[Built]:
    """The project built once more from its own directory, with the keys given and everything else different.

    As root by another user too: pytest's own directories are closed to others, so it is not among them.
    """
    base = Path(tempfile.mkdtemp(prefix="a second, longer directory name "))
    base.chmod(0o755)
    try:
        project, config, home = base / "my project", base / "configuration", base / "home"
        for folder in (project, home, base / "tmp", base / "site"):
            folder.mkdir()
        (base / "site" / "sitecustomize.py").write_text(REVERSED)
        # The same sources, whatever is edited here meanwhile.
        shutil.copytree(built.project, project, dirs_exist_ok=True, symlinks=True, ignore=_outputs)
        shutil.copytree(built.config_dir, config)
        # Names that a directory would list in another order, made before the others and removed: another inode order.
        for path in sorted((project / "guest-vm").rglob("*"), reverse=True):
            if path.is_file():
                data, mode = path.read_bytes(), path.stat().st_mode
                path.unlink()
                path.write_bytes(data)
                path.chmod(mode & 0o700)
                os.utime(path, (1_000_000_000, 1_000_000_000))
        # The downloads, where the first build found them.
        cache = Path(os.environ.get("CACHE_DIR") or _cache_home() / "openend2e-sevsnp")
        prefix = []
        if os.geteuid() == 0:
            shutil.copytree(cache / "debs", base / "downloads" / "debs")
            cache = base / "downloads"
            prefix = as_another_user(base, home)
            for path in (base, *base.rglob("*")):
                if path.parent != base / "etc":
                    os.lchown(path, USER, USER)
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "doit", "-n", "2", *GOALS],
            cwd=project,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "TMPDIR": str(base / "tmp"),
                "TZ": "Pacific/Kiritimati",
                "LC_ALL": "tr_TR.UTF-8",
                "LANG": "de_DE.UTF-8",
                "USER": "somebody",
                "PYTHONHASHSEED": "7",
                "PYTHONPATH": str(base / "site"),
                "SOURCE_DATE_EPOCH": "1",
                "CONFIG_DIR": str(config),
                "CACHE_DIR": str(cache),
                # One of its own, and empty: nothing is copied from the first build.
                "SEVSNP_CACHE": str(base / "artefacts"),
                **{name: os.environ[name] for name in ("MIRROR", "SNAPSHOT_MIRROR") if name in os.environ},
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=0o077,
            timeout=BUILD_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        assert "from the cache" not in done.stdout
        if prefix:
            assert (project / "build" / "verity" / "verity.img").stat().st_uid == USER
        yield Built(project, config)
    finally:
        remove_tree(base)


def _outputs(directory: str, names: list[str]) -> set[str]:
    return {name for name in names if name in ("build", "__pycache__") or name.startswith(".doit.db")}


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def test_every_artefact_has_the_same_bytes(built: Built, second: Built) -> None:
    assert differences(built.build, second.build, FILES) == []


def test_both_guests_have_the_same_launch_digest(built: Built, second: Built) -> None:
    for platform in ("snp", "emulated"):
        one, other = built.config(platform).require_reference(), second.config(platform).require_reference()
        assert one.launch_digest == other.launch_digest
    assert built.config("snp").reference != built.config("emulated").reference


def test_the_bundle_is_the_same_tree(built: Built, second: Built) -> None:
    listed = [tree(made.build / "host-bundle") for made in (built, second)]
    assert listed[0] == listed[1]
    names = tuple(name for name, kind in listed[0].items() if kind.startswith("-"))
    assert differences(built.build / "host-bundle", second.build / "host-bundle", names) == []


def tree(directory: Path) -> dict[str, str]:
    """The paths below a directory, each with its type and permissions."""
    import stat

    return {
        path.relative_to(directory).as_posix(): stat.filemode(path.lstat().st_mode)
        for path in sorted(directory.rglob("*"))
        if "__pycache__" not in path.parts
    }


def test_no_artefact_names_the_directory_or_the_user(second: Built) -> None:
    words = [str(second.project).encode(), b"my project", b"somebody"]
    found = []
    for name in FILES:
        with (second.build / name).open("rb") as stream:
            tail = b""
            while piece := stream.read(CHUNK):
                found += [(name, word) for word in words[:2] if word in tail + piece]
                tail = piece[-128:]
    assert found == []


def test_another_key_of_the_user_is_another_guest(built: Built, tmp_path: Path) -> None:
    """The comparison notices what a build takes from its inputs."""
    from sevsnp.images.guest import make_guest_rootfs
    from sevsnp.keys.pairs import ensure_keys

    made = {}
    for name, key in (("same", built.keys.user_public), ("other", ensure_keys(tmp_path / "keys").user_public)):
        made[name] = tmp_path / name / "rootfs.tar"
        made[name].parent.mkdir()
        make_guest_rootfs(
            packages=built.build / "guest/packages.tar",
            guest=built.project / "guest-vm/guest.yaml",
            files=built.project / "guest-vm/files",
            authorized_key=key,
            output=made[name],
        )
    first = built.build / "guest" / "rootfs.tar"
    assert difference(first, made["same"]) == ""
    assert difference(first, made["other"]).startswith("rootfs.tar: first differing byte at 0x")


def test_a_difference_is_reported_with_its_offset(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(3 * CHUNK))
    other.write_bytes(bytes(2 * CHUNK + 5) + b"\1" + bytes(CHUNK - 6))
    assert difference(one, one) == ""
    assert (
        difference(one, other) == f"one: first differing byte at {2 * CHUNK + 5:#x}, sizes {3 * CHUNK} and {3 * CHUNK}"
    )
    other.write_bytes(bytes(CHUNK + 7))
    assert f"at {CHUNK + 7:#x}, sizes {3 * CHUNK} and {CHUNK + 7}" in difference(one, other)
