# SPDX-License-Identifier: Apache-2.0
"""For the tests of the shared cache: machines with nothing but a clone, small tasks, and a view into a registry."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from sevsnp.system.files import sha256_file
from tests.conftest import copy_project
from tests.support.processes import ends_with_us
from tests.support.registry_server import Registry
from tests.support.waiting import NET

SECONDS = 600
# The registry's time-out in tests of time-outs, and the small project's variable for it, whose default is NET.
TIMEOUT = 2.0
PATIENCE = "REGISTRY_SECONDS"
CANARY, PUBLIC = "canary-that-nobody-may-read", "canary-for-everyone"

FUNCTIONS = f"""
import random
from pathlib import Path

from sevsnp.system.command import run


def word(*, source: Path, number: int, output: Path) -> None:
    output.write_text(f"{{number}} {{source.read_text().upper()}}")


def image(*, source: Path, size: int, output: Path) -> None:
    output.write_bytes(random.Random(source.read_bytes()).randbytes(size))


def tree(*, word: Path, image: Path, output: Path) -> None:
    (output / "small").mkdir(parents=True)
    (output / "small" / "word").write_bytes(word.read_bytes())
    (output / "small" / "link").symlink_to("word")
    (output / "small" / "program").write_text("#!/bin/sh\\n")
    (output / "small" / "program").chmod(0o755)
    (output / "large").write_bytes(image.read_bytes()[::-1])


def secret(*, source: Path, output: Path) -> None:
    output.write_text("{CANARY}")
    output.chmod(0o600)


def secret_inside(*, source: Path, output: Path) -> None:
    output.mkdir()
    (output / "open").write_text("{CANARY}, as a neighbour")
    (output / "closed").write_text("{CANARY}")
    (output / "closed").chmod(0o600)


def public(*, source: Path, output: Path) -> None:
    output.write_text("{PUBLIC}")


def child(*, source: Path, output: Path) -> None:
    output.write_bytes(run(["env"]))
"""
TASKS = """
from pathlib import Path

from tasks.graph import artefact

BUILD, SOURCE = Path("build"), {"source": Path("README.md")}


def made(name, **more):
    what = {"inputs": SOURCE, "outputs": {"output": BUILD / name}, **more}
    return artefact(f"sevsnp.standins:{name.partition('-')[0]}", **what)


def task_word():
    return made("word", params={"number": 0})


def task_image():
    return made("image", params={"size": 3 << 20})


def task_big():
    return made("image-big", params={"size": 96 << 20})


def task_tree():
    inputs = {"word": BUILD / "word", "image": BUILD / "image"}
    return made("tree", inputs=inputs, outputs={}, trees={"output": (BUILD / "tree", ["large"])})


def task_more():
    for number in range(1, 7):
        yield {"name": str(number), **made(f"word-{number}", params={"number": number})}


def task_secret():
    return made("secret")


def task_secret_inside():
    return made("secret_inside", outputs={}, trees={"output": (BUILD / "secret_inside", ["open"])})


def task_public():
    return made("public")


def task_child():
    return made("child")
"""


@dataclass(frozen=True)
class Machine:
    """A clone in ``project``, and everything else of a machine in ``home``: caches, downloads, logins."""

    project: Path
    home: Path

    @property
    def build(self) -> Path:
        return self.project / "build"

    def start(self, *words: str, **variables: str) -> "subprocess.Popen[str]":
        """Start doit; its output comes through ``stdout``."""
        own = {"SEVSNP_CACHE": "cache", "CACHE_DIR": "downloads", "CONFIG_DIR": "config", "DOCKER_CONFIG": "docker"}
        return subprocess.Popen(
            ends_with_us(sys.executable, "-m", "doit", *words),
            cwd=self.project,
            env={**os.environ, **{name: str(self.home / place) for name, place in own.items()}, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def doit(self, *words: str, check: bool = True, **variables: str) -> "Said":
        with self.start(*words, **variables) as process:
            try:
                output, _ = process.communicate(timeout=SECONDS)
            finally:
                process.kill()
        assert not check or process.returncode == 0, output
        assert "Traceback" not in output, output
        return Said(output, process.returncode)


@dataclass(frozen=True)
class Said:
    """The output of a run of doit, and its exit code."""

    output: str
    code: int

    @property
    def done(self) -> dict[str, str]:
        """The tasks that succeeded, each with its remark."""
        return dict(re.findall(r"^✓ (.+) \([0-9.]+ s(?:, (.+))?\)$", self.output, re.MULTILINE))

    @property
    def warnings(self) -> list[str]:
        return [line.strip() for line in self.output.splitlines() if line.startswith("  ")]

    @property
    def built(self) -> set[str]:
        """The tasks that were not copied from a cache."""
        return {name for name, remark in self.done.items() if remark != "from the cache"}


PATIENT = f'timeout: float = float(__import__("os").environ.get("{PATIENCE}", "{NET}"))'


def make_small_project(target: Path) -> None:
    """The project with stand-ins in place of its tasks."""
    copy_project(target)
    (target / "sevsnp" / "standins.py").write_text(FUNCTIONS)
    (target / "tasks" / "standins.py").write_text(TASKS)
    _replace(target / "dodo.py", r"STAGES = \([^)]*\)", 'settings()\nSTAGES = ("setup", "standins")')
    _replace(target / "dodo.py", r"import end_cleanly", "import end_cleanly, settings")
    _replace(target / "sevsnp" / "store" / "registry.py", r"timeout: float = 10\.0", PATIENT)


def _replace(file: Path, pattern: str, words: str) -> None:
    text, count = re.subn(pattern, words, file.read_text())
    assert count == 1, (file, pattern)
    file.write_text(text)


def clone(source: Path, place: Path) -> Machine:
    """Another machine with only the sources of ``source``, without the tests."""
    shutil.copytree(source, place / "project", symlinks=True, ignore=_not_tracked(source))
    return Machine(place / "project", place / "home")


def _not_tracked(source: Path) -> Any:
    def ignored(directory: str, names: list[str]) -> list[str]:
        made = ("build", ".cache", "tests") if Path(directory) == source else ()
        return [name for name in names if name in made or name.startswith(".doit.db")]

    return ignored


def contents(directory: Path, *without: str) -> dict[str, tuple[int, str]]:
    """Permissions and content of everything below ``directory``, except the log and the names in ``without``."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name.partition("/")[0] in ("log", *without):
            continue
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            found[name] = (0, os.fspath(path.readlink()))
        elif path.is_file():
            found[name] = (mode, sha256_file(path))
        else:
            found[name] = (mode, "")
    return found


# The registry's own files.


def manifest_file(server: Registry, key: str) -> Path:
    link = _tags(server) / key / "current" / "link"
    return server.blob(link.read_text())


def manifest(server: Registry, key: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(manifest_file(server, key).read_bytes())
    return document


def keys(server: Registry) -> dict[str, str]:
    """The key of each entry, by the name of the function that made it; one key if several entries share a function."""
    found = {}
    for tag in _tags(server).iterdir() if _tags(server).exists() else ():
        document = json.loads(server.blob(manifest(server, tag.name)["config"]["digest"]).read_bytes())
        found[document["function"].partition(":")[2]] = tag.name
    return found


def blobs(server: Registry) -> set[str]:
    """The digests of all blobs that the registry stores, including manifests."""
    root = server.root / "docker/registry/v2/blobs/sha256"
    return {f"sha256:{data.parent.name}" for data in root.glob("*/*/data")}


def plain_contents(server: Registry) -> Iterator[bytes]:
    """The content of all files in the registry's storage, and compressed layers also decompressed."""
    for path in server.root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            yield data
            if data.startswith(b"\x28\xb5\x2f\xfd"):
                yield zstandard.ZstdDecompressor().decompress(data)


def _tags(server: Registry) -> Path:
    return server.root / "docker/registry/v2/repositories/cache/_manifests/tags"
