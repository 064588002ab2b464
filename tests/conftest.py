# SPDX-License-Identifier: Apache-2.0
"""Fixtures that the tests share: one build of the whole project, in a directory of its own, with keys of its own."""

import ast
import collections
import compileall
import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from sevsnp.keys.paths import Keys
from sevsnp.vm_config.config import VmConfig, read_vm_config
from tests.support.compiled_once import load_share
from tests.support.processes import ends_with_us

PROJECT = Path(__file__).resolve().parents[1]
BUILD_SECONDS = 1200
# The order of files that need no build, which run while the others would wait for it, and then of those that do. The
# tests that take longest do not begin last.
PARTS = ("unit", "boot", "adversary", "remedies", "pipeline")
# The groups of files with shared guests, each for one process, and the guests of the second. No file uses guests of
# both, so that none boots twice.
GUESTS, GUESTS_APART = "guests", "guests apart"
APART = frozenset({"luks_guest"})
GOALS = ("setup_verity", "host_bundle", "build_tools", "create_new_vm")
# The results of these differ each time, so no cache has them.
LUKS_GOALS = ("setup_luks", "host_bundle_luks")


@dataclass(frozen=True)
class Built:
    """A copy of the project in which everything was built, with the keys in ``config_dir``."""

    project: Path
    config_dir: Path

    @property
    def build(self) -> Path:
        return self.project / "build"

    @property
    def qemu(self) -> Path:
        return self.tools / "qemu-system-x86_64"

    @property
    def tools(self) -> Path:
        """The pinned tools, as wrappers."""
        return self.build / "snp-release" / "bin"

    @property
    def keys(self) -> Keys:
        return Keys.of(self.config_dir)

    def config(self, platform: str) -> VmConfig:
        """The VM config of the integrity workflow for ``snp`` or ``emulated``."""
        suffix = ".emulated.toml" if platform == "emulated" else ".toml"
        return read_vm_config(self.build / "verity" / f"vm-config-verity{suffix}")

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of doit in the copy."""
        return {**os.environ, "CONFIG_DIR": str(self.config_dir), **variables}

    def doit(self, *words: str, check: bool = True, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run doit in the copy with extra environment variables; its output is in the result."""
        return subprocess.run(
            ends_with_us(sys.executable, "-m", "doit", *words),
            cwd=self.project,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=check,
            timeout=BUILD_SECONDS,
        )


@functools.cache
def _compile_project() -> None:
    """Compile the library and the tasks, which every run of doit in a copy would otherwise do again."""
    for name in ("sevsnp", "tasks"):
        compileall.compile_dir(PROJECT / name, quiet=2)


def copy_project(target: Path) -> None:
    """Copy the files that git tracks or would track, as they are now, so that a build there changes nothing here.

    A copied source has the time of the original, and so its byte code, which is copied too.
    """
    _compile_project()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source = PROJECT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
            copy_byte_code(source, target / name)


def copy_byte_code(source: Path, target: Path) -> None:
    """Copy the byte code of a source that was copied with its time."""
    compiled = Path(importlib.util.cache_from_source(str(source)))
    if source.suffix == ".py" and compiled.is_file():
        place = target.parent / compiled.parent.name
        place.mkdir(exist_ok=True)
        shutil.copyfile(compiled, place / compiled.name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out what needs the build, and what is marked slow")
    parser.addoption("--built", metavar="DIR", help="build in DIR and keep it, so that the next run builds less")
    parser.addoption("--firmware", metavar="WORD", default="", help="source: boot guests with the firmware from source")


# For each shared guest, what must end with the last test that uses it; and the guests whose last use a test is.
_GUESTS = pytest.StashKey[dict[str, contextlib.ExitStack]]()
_LAST_USES = pytest.StashKey[dict[str, list[str]]]()


def until_last_use(config: pytest.Config, guest: str) -> contextlib.ExitStack:
    """Closed after the last test that uses the fixture ``guest``, or at the end."""
    return config.stash[_GUESTS].setdefault(guest, contextlib.ExitStack())


def _end_guests(config: pytest.Config, names: Collection[str] = ()) -> None:
    stacks = config.stash[_GUESTS]
    for name in list(names or stacks):
        if name in stacks:
            stacks.pop(name).close()


def pytest_configure(config: pytest.Config) -> None:
    """Set no time limit for a generated case: on a busy machine it would be exceeded. Handle signals.

    If this run ignores a signal, as under nohup and in a shell's background, its children would inherit that.

    A handler of ours is not inherited, and also keeps this run alive.
    """
    hypothesis.settings.register_profile("without a time limit", hypothesis.settings(), deadline=None)
    hypothesis.settings.load_profile("without a time limit")
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    config.stash[_GUESTS] = {}
    config.add_cleanup(lambda: _end_guests(config))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Forbid RSA keys while tests are collected: each takes seconds in every process, whichever tests it runs."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an RSA key while tests are collected; make it when a test asks for it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rsa, "generate_private_key", refuse)
        load_share(session.config)
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put tests with shared guests first, whose process builds, then files that need no build, then the others.

    With --fast, select only the fast tests.
    """
    if config.getoption("--fast"):
        slow = [item for item in items if _is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
    building = {item.path for item in items if _needs_build(item)}
    items.sort(key=lambda item: (_group_of(item) != GUESTS, item.path in building, PARTS.index(_place(item).parts[0])))
    _sort_by_guest(items, GUESTS)
    _sort_by_guest(items, GUESTS_APART)


def _sort_by_guest(items: list[pytest.Item], group: str) -> None:
    """Put the group's files that use rarely used guests first, so that these guests end early.

    A test marked ends_guest follows all others that use its guest.
    """
    places = [place for place, item in enumerate(items) if _group_of(item) == group]
    uses = collections.Counter(name for place in places for name in _guests_of(items[place]))
    of_file: dict[Path, set[str]] = collections.defaultdict(set)
    for place in places:
        of_file[items[place].path] |= _guests_of(items[place])
    ordered = sorted(
        (items[place] for place in places), key=lambda item: min((uses[name] for name in of_file[item.path]), default=0)
    )
    for item in [each for each in ordered if each.get_closest_marker("ends_guest")]:
        ordered.remove(item)
        users = [place for place, other in enumerate(ordered) if _guests_of(other) & _guests_of(item)]
        ordered.insert(max(users, default=-1) + 1, item)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


def _group_of(item: pytest.Item) -> str:
    return _group(item.nodeid.partition("::")[0])


def _guests_of(item: pytest.Item) -> set[str]:
    return _imported_guests(item.path.with_name("conftest.py")) & set(getattr(item, "fixturenames", ()))


def pytest_collection_finish(session: pytest.Session) -> None:
    last = {name: item.nodeid for item in session.items for name in _guests_of(item)}
    session.config.stash[_LAST_USES] = {node: [name for name in last if last[name] == node] for node in last.values()}


def _place(item: pytest.Item) -> Path:
    """A test's file, relative to tests/."""
    return item.path.relative_to(PROJECT / "tests")


def _is_slow(item: pytest.Item) -> bool:
    marked = any(item.get_closest_marker(name) for name in ("boot", "full", "slow"))
    return marked or _needs_build(item)


def _needs_build(item: pytest.Item) -> bool:
    return "built" in getattr(item, "fixturenames", ())


@functools.cache
def _group(file: str) -> str:
    """The group of a file's tests: one process runs all files of a group with shared guests, any process another file.

    A shared guest takes half a minute to boot, and boots once in each process.
    """
    shared = _imported_guests(PROJECT / Path(file).with_name("conftest.py"))
    text = (PROJECT / file).read_text()
    if not any(name in text for name in shared):  # most files; parsing takes longer
        return file
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    asking = [
        each for each in functions if each.name.startswith("test_") or "fixture" in map(_name, each.decorator_list)
    ]
    asked = {argument.arg for each in asking for argument in each.args.args}
    used = shared & asked - {each.name for each in functions}
    if used & APART:
        assert used <= APART, (
            f"{file}: {', '.join(sorted(used))}: put the tests of {', '.join(APART)} into another file"
        )
        return GUESTS_APART
    return GUESTS if used else file


@functools.cache
def _imported_guests(conftest: Path) -> set[str]:
    """The fixtures for guests that a directory's conftest.py imports from tests/support."""
    nodes = ast.parse(conftest.read_text()).body if conftest.exists() else []
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_guests")]
    return {alias.name for node in froms for alias in node.names}


def _name(decorator: ast.expr) -> str:
    """The last part of a decorator's name, without its arguments."""
    return ast.unparse(decorator).partition("(")[0].rpartition(".")[2]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """xdist's own groups need a marker in a node's name, which this pytest does not put there."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGuest(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.partition("::")[0])

    return ByGuest(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """End the shared guests that no later test uses."""
    yield
    if last := item.config.stash[_LAST_USES].get(item.nodeid):
        _end_guests(item.config, last)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """At the end of the last process, remove the directory that all processes have shared."""
    if not hasattr(session.config, "workerinput") and not session.config.getoption("--built"):
        shutil.rmtree(_common(session.config), ignore_errors=True)


def _common(config: pytest.Config) -> Path:
    """The directory that all test processes share: --built, or one that is removed after the run."""
    if kept := config.getoption("--built"):
        return Path(kept).resolve()
    factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
    base = factory.getbasetemp()
    return (base.parent if hasattr(config, "workerinput") else base) / "common"


@pytest.fixture(scope="session", autouse=True)
def artefact_cache(request: pytest.FixtureRequest) -> Iterator[Path]:
    """No test reads the user's own artefact cache or volumes, or writes to them."""
    directory = _common(request.config) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEVSNP_CACHE", str(directory))
        patch.setenv("DATA_DIR", str(_common(request.config) / "data"))
        yield directory


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, artefact_cache: Path) -> Built:
    """The whole project, built once in a run through doit as a user would; the other test processes wait for it."""
    base = _common(request.config)
    made = Built(base / "project", base / "config")
    made.project.mkdir(parents=True, exist_ok=True)
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}")
    with (base / "built").open("a+") as done:
        fcntl.flock(done, fcntl.LOCK_EX)
        done.seek(0)
        if done.read() != run:
            copy_project(made.project)
            settings = made.project / "config.yaml"
            changed = settings.read_text().replace("luks_free: 512M", "luks_free: 16M ")
            firmware = json.dumps(request.config.getoption("--firmware"))
            settings.write_text(changed.replace('firmware: ""', f"firmware: {firmware}"))
            result = made.doit(*GOALS, *LUKS_GOALS, check=False)
            assert result.returncode == 0, result.stdout[-4000:]
            done.truncate(0)
            done.write(run)
    return made


@pytest.fixture(scope="session")
def tools(built: Built) -> Path:
    """The directory of the pinned tools."""
    return built.tools
