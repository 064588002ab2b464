# SPDX-License-Identifier: Apache-2.0
"""A full disk, under build/, the artefact cache, doit's database or TMPDIR, at several moments of a build.

The disk is a small tmpfs in a mount namespace of its own, which root has and often any user.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevsnp.system.files import sha256_file
from tests.conftest import Built, copy_project
from tests.support.copies import copy_built, leavings
from tests.support.waiting import NET

NAMES = ("first", "second", "third")
LIBRARY = """
from pathlib import Path

from sevsnp.system.command import run


def by_python(*, source: Path, output: Path) -> None:
    text = source.read_text()[:50] + output.name
    with output.open("w") as stream:
        for _ in range(900_000 // len(text)):
            stream.write(text)


def by_tool(*, source: Path, output: Path) -> None:
    '''A tool that fails in its own words.'''
    run(["sh", "-c", 'cat "$1" "$1" > "$2" 2>/dev/null || { echo it went wrong >&2; exit 1; }', "sh", source, output])


def tree(*, source: Path, output: Path) -> None:
    (output / "inner").mkdir(parents=True)
    for number in range(10):
        (output / "inner" / str(number)).write_bytes(source.read_bytes()[:100_000] + str(number).encode())
"""
TASKS = """
from pathlib import Path

from tasks.graph import artefact

B = Path("build")


def task_first():
    '''First'''
    return artefact("sevsnp.standin:by_python", inputs={"source": Path("README.md")}, outputs={"output": B / "first"})


def task_second():
    '''Second'''
    return artefact("sevsnp.standin:by_tool", inputs={"source": B / "first"}, outputs={"output": B / "second"})


def task_third():
    '''Third'''
    return artefact(
        "sevsnp.standin:tree", inputs={"source": B / "second"}, trees={"output": (B / "third", ["inner/0"])}
    )
"""


@dataclass(frozen=True)
class Namespace:
    """A mount namespace that lives as long as ``process``; what is mounted in it is seen in it alone."""

    process: "subprocess.Popen[str]"
    user: bool

    def argv(self, *words: str | Path) -> list[str]:
        enter = ["nsenter", "--target", str(self.process.pid), "--mount"]
        return [*enter, *(["--user", "--preserve-credentials"] if self.user else []), "--", *map(str, words)]

    def mount(self, place: Path, options: str) -> Path:
        """Mount a tmpfs at ``place``, or change its size; where it is seen from outside."""
        place.mkdir(parents=True, exist_ok=True)
        seen = Path(f"/proc/{self.process.pid}/root{place}")
        again = seen.stat().st_dev != place.stat().st_dev
        options = f"{'remount,' if again else ''}mode=0755,{options}"
        subprocess.run(self.argv("mount", "-t", "tmpfs", "-o", options, "none", place), check=True, timeout=NET)
        return seen

    def doit(self, project: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return run_doit(project, *words, inside=self.argv(), **variables)


def run_doit(
    project: Path, *words: str, inside: Sequence[str] = (), **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run doit in ``project``; ``inside`` is the command that runs another one elsewhere."""
    return subprocess.run(
        [*inside, "env", "-C", project, sys.executable, "-m", "doit", *words],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    user = os.geteuid() != 0
    words = ["unshare", "--map-root-user", "--mount"] if user else ["unshare", "--mount"]
    process = subprocess.Popen(
        [*words, "sh", "-c", "mount -t tmpfs none /mnt && echo ready && exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        process.communicate()
        pytest.skip("this user may not mount anything in a namespace of his own")
    yield Namespace(process, user)
    process.communicate()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return project_with_standins(tmp_path / "project")


def project_with_standins(made: Path) -> Path:
    copy_project(made)
    (made / "sevsnp" / "standin.py").write_text(LIBRARY)
    (made / "tasks" / "standin.py").write_text(TASKS)
    dodo = made / "dodo.py"
    dodo.write_text(dodo.read_text().replace('"setup",', '"standin", "setup",'))
    return made


def digests(build: Path) -> dict[str, str]:
    found = {str(path.relative_to(build)): path for path in sorted(build.rglob("*")) if path.is_file()}
    return {name: sha256_file(path) for name, path in found.items() if not name.startswith("log/")}


@dataclass(frozen=True)
class Reference:
    """What a run on a disk with room makes, and the artefact cache that has it."""

    digests: dict[str, str]
    cache: Path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp("reference")
    project, cache = project_with_standins(directory / "project"), directory / "cache"
    done = run_doit(project, "third", SEVSNP_CACHE=str(cache))
    assert done.returncode == 0, done.stdout
    return Reference(digests(project / "build"), cache)


@pytest.fixture
def expected(reference: Reference) -> dict[str, str]:
    return reference.digests


def refused(output: str, place: str) -> None:
    """One clear line: what could not be written, and how to see what fills the disk."""
    assert "Traceback" not in output, output
    lines = output.splitlines()
    wrong = [number for number, line in enumerate(lines) if line.startswith(("✗ ", "ERROR"))]
    assert len(wrong) == 1, output
    assert re.search(f"{place}.*: cannot be written: (No space left on device|the disk is full)", lines[wrong[0]]), (
        output
    )
    assert "df -h" in output, output


def whole(cache: Path) -> None:
    assert leavings(cache) == []
    for path in cache.glob("blobs/??/*"):
        assert sha256_file(path) == path.name
    for path in cache.glob("entries/*"):
        assert path.stat().st_size > 0


# In KiB. All of it takes about 0.9 + 1.8 + 1 MiB, and while the second is made the same once more.
SIZES = [100, 3400, 6000]
# All of it takes about 3,650 KiB: a little more, and it fits.
MORE_SIZES = [4, 300, 700, 900, 1000, 1400, 1800, 2000, 2300, 2600, 2900, 3100, 3600]


def sweep(sizes: Sequence[object], more: Sequence[object]) -> list[object]:
    return [*sizes, *(pytest.param(size, marks=pytest.mark.full) for size in more)]


@pytest.mark.parametrize("size", sweep(SIZES, MORE_SIZES))
def test_a_full_disk_under_build(
    project: Path, namespace: Namespace, expected: dict[str, str], tmp_path: Path, size: int
) -> None:
    build = namespace.mount(project / "build", f"size={size}k")
    cache = tmp_path / "cache"
    done = namespace.doit(project, "third", SEVSNP_CACHE=str(cache))
    assert (done.returncode == 0) == (size >= 6000), done.stdout
    if done.returncode:
        refused(done.stdout, "build")
    assert digests(build).items() <= expected.items() and leavings(build) == []
    whole(cache)
    namespace.mount(project / "build", "size=64m")
    done = namespace.doit(project, "third", SEVSNP_CACHE=str(cache))
    assert done.returncode == 0, done.stdout
    assert digests(build) == expected and leavings(build) == []


@pytest.mark.parametrize("size", sweep([3000], [100, *MORE_SIZES]))
def test_restoring_to_a_full_disk(project: Path, namespace: Namespace, reference: Reference, size: int) -> None:
    """An artefact from the cache is a copy, and needs as much room as a new one."""
    expected = reference.digests
    build = namespace.mount(project / "build", f"size={size}k")
    done = namespace.doit(project, "third", SEVSNP_CACHE=str(reference.cache))
    if done.returncode:
        refused(done.stdout, "build")
    assert (done.returncode == 0) == (size >= 4200), done.stdout
    assert digests(build).items() <= expected.items() and leavings(build) == []
    namespace.mount(project / "build", "size=64m")
    done = namespace.doit(project, "third", SEVSNP_CACHE=str(reference.cache))
    assert done.returncode == 0 and done.stdout.count("from the cache") in (1, 2, 3), done.stdout
    assert digests(build) == expected


@pytest.mark.parametrize(
    "options",
    sweep(
        [2000, "nr_inodes=8"],
        [100, *(size for size in MORE_SIZES if size != 2000), "nr_inodes=1", "nr_inodes=4", "nr_inodes=14"],
    ),
)
def test_a_full_disk_under_the_artefact_cache(
    project: Path, namespace: Namespace, expected: dict[str, str], tmp_path: Path, options: int | str
) -> None:
    """The cache only saves time: without room for it the build gives a warning and succeeds."""
    place = tmp_path / "cache"
    cache = namespace.mount(place, options if isinstance(options, str) else f"size={options}k")
    done = namespace.doit(project, "third", SEVSNP_CACHE=str(place))
    assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout
    if isinstance(options, str) or options < 3600:
        assert "artefact cache" in done.stdout and "No space left on device" in done.stdout, done.stdout
    assert digests(project / "build") == expected
    whole(cache)
    # With room it is used again, and whatever was left half-done is no harm.
    namespace.mount(place, "size=64m" if isinstance(options, int) else "nr_inodes=10000")
    for _ in range(2):
        assert namespace.doit(project, "clean", *NAMES).returncode == 0
        (project / ".doit.db").unlink(missing_ok=True)
        done = namespace.doit(project, "third", SEVSNP_CACHE=str(place))
        assert done.returncode == 0, done.stdout
    assert done.stdout.count("from the cache") == 3
    assert digests(project / "build") == expected
    whole(cache)


@pytest.mark.parametrize("options", sweep(["size=24k"], ["nr_inodes=1", "size=4k", "size=12k", "size=64k"]))
def test_a_full_disk_under_the_database_of_doit(
    project: Path, namespace: Namespace, expected: dict[str, str], tmp_path: Path, options: str
) -> None:
    """The database of doit only saves time, too."""
    namespace.mount(tmp_path / "disk", options)
    (project / ".doit.db").symlink_to(tmp_path / "disk" / "database")
    done = namespace.doit(project, "third", SEVSNP_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout
    assert digests(project / "build") == expected
    namespace.mount(tmp_path / "disk", "nr_inodes=100" if "inodes" in options else "size=1m")
    done = namespace.doit(project, "third", SEVSNP_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout
    assert digests(project / "build") == expected
    # Now it is kept.
    assert "▸" not in namespace.doit(project, "third", SEVSNP_CACHE=str(tmp_path / "cache")).stdout


def test_a_full_disk_under_the_lock_of_the_checkout(
    project: Path, namespace: Namespace, expected: dict[str, str], tmp_path: Path
) -> None:
    """Without this lock two runs could write the same files: the build does not start, and prints the reason."""
    namespace.mount(project / ".cache", "nr_inodes=1")
    done = namespace.doit(project, "third", SEVSNP_CACHE=str(tmp_path / "cache"))
    assert done.returncode != 0 and "Traceback" not in done.stdout, done.stdout
    assert ".cache/build.lock" in done.stdout and "No space left on device" in done.stdout
    namespace.mount(project / ".cache", "nr_inodes=10")
    assert namespace.doit(project, "third", SEVSNP_CACHE=str(tmp_path / "cache")).returncode == 0
    assert digests(project / "build") == expected


@dataclass(frozen=True)
class Root:
    """The built project whose build/verity is an empty disk, and what belongs there."""

    copy: Built
    namespace: Namespace
    reference: dict[str, str]
    sizes: dict[str, int]

    @property
    def place(self) -> Path:
        return self.copy.build / "verity"

    def run(self, task: str, size: int) -> "subprocess.CompletedProcess[str]":
        """Run a task with a disk of ``size`` bytes; what is there then must be whole."""
        seen = self.namespace.mount(self.place, f"size={size}")
        done = self.namespace.doit(self.copy.project, task, CONFIG_DIR=str(self.copy.config_dir), CACHE="off")
        found = digests(seen)
        assert found.items() <= self.reference.items() and leavings(seen) == []
        assert done.returncode or task != "_verity_root" or found == self.reference
        return done


@pytest.fixture
def root(built: Built, namespace: Namespace, tmp_path: Path) -> Root:
    copy = copy_built(built, tmp_path / "project")
    names = ("verity.img", "hash-tree.img", "roothash.txt", "copied.json")
    made = {name: copy.build / "verity" / name for name in names}
    sizes = {name: path.stat().st_blocks * 512 for name, path in made.items()}
    return Root(copy, namespace, {name: sha256_file(path) for name, path in made.items()}, sizes)


def room_used(root: Root) -> int:
    """The bytes that the verified root takes on a disk that is large enough; it is removed from there."""
    assert root.run("_verity_root", sum(root.sizes.values()) * 4).returncode == 0
    seen = Path(f"/proc/{root.namespace.process.pid}/root{root.place}")
    room = os.statvfs(seen)
    for path in seen.iterdir():
        path.unlink()
    return (room.f_blocks - room.f_bfree) * room.f_frsize


@pytest.mark.full
@pytest.mark.parametrize("share", [0.75, 0.05, 0.2, 0.4, 0.6, 0.85, 0.95])
def test_a_full_disk_under_the_image_of_the_verified_root(root: Root, share: float) -> None:
    failed = root.run("_verity_root", int((room_used(root) - root.sizes["hash-tree.img"]) * share))
    assert failed.returncode != 0, failed.stdout
    refused(failed.stdout, "build/verity")
    done = root.run("_verity_root", sum(root.sizes.values()) * 4)
    assert done.returncode == 0, done.stdout


@pytest.mark.full
@pytest.mark.parametrize("share", [0.5, 0.1, 0.9])
def test_a_full_disk_under_the_hash_tree_of_the_verified_root(root: Root, share: float) -> None:
    failed = root.run("_verity_root", room_used(root) - int(root.sizes["hash-tree.img"] * (1 - share)))
    assert failed.returncode != 0, failed.stdout
    refused(failed.stdout, "build/verity")
    done = root.run("_verity_root", sum(root.sizes.values()) * 4)
    assert done.returncode == 0, done.stdout


@pytest.mark.full
@pytest.mark.parametrize("megabytes", [1, 40, 200])
def test_a_full_temporary_directory(built: Built, namespace: Namespace, tmp_path: Path, megabytes: int) -> None:
    """Packages are installed in TMPDIR."""
    copy = copy_built(built, tmp_path / "project")
    packages = copy.build / "guest" / "packages.tar"
    reference = sha256_file(packages)
    packages.unlink()
    temporary = namespace.mount(tmp_path / "temporary", f"size={megabytes}m")
    variables = {"CONFIG_DIR": str(copy.config_dir), "CACHE": "off", "TMPDIR": str(tmp_path / "temporary")}
    done = namespace.doit(copy.project, "_guest_packages", **variables)
    assert done.returncode != 0 and not packages.exists(), done.stdout
    refused(done.stdout, str(tmp_path / "temporary"))
    assert list(temporary.iterdir()) == []
    namespace.mount(tmp_path / "temporary", "size=2g")
    assert namespace.doit(copy.project, "_guest_packages", **variables).returncode == 0
    assert sha256_file(packages) == reference and list(temporary.iterdir()) == []


@pytest.mark.full
@pytest.mark.parametrize("megabytes", [1, 100, 300])
def test_a_full_temporary_directory_for_the_firmware_from_source(
    built: Built, namespace: Namespace, tmp_path: Path, megabytes: int
) -> None:
    """It is built in TMPDIR: there is too little room for its source, for the source archive, or for its compiler."""
    copy = copy_built(built, tmp_path / "project")
    made = copy.build / "firmware" / "source" / "OVMF.fd"
    made.unlink(missing_ok=True)
    copy.doit("_compiler", "_edk2", "FIRMWARE=source")
    temporary = namespace.mount(tmp_path / "temporary", f"size={megabytes}m")
    variables = {"CONFIG_DIR": str(copy.config_dir), "CACHE": "off", "TMPDIR": str(tmp_path / "temporary")}
    done = namespace.doit(copy.project, "_firmware", FIRMWARE="source", **variables)
    assert done.returncode != 0 and not made.exists(), done.stdout
    refused(done.stdout, str(tmp_path / "temporary"))
    assert list(temporary.iterdir()) == []
