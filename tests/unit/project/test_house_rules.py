# SPDX-License-Identifier: Apache-2.0
"""The rules of the project: linters, types, allowed imports, and texts that no file may contain."""

import ast
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.project.testing import LINTERS

PROJECT = Path(__file__).resolve().parents[3]
LONGEST_MODULE = 400

# Production code that must not know of the emulation, and the modules that may load it when a user asked for it.
NOT_PRODUCTION = {"emulation", "bench"}
PRODUCTION = tuple(
    f"sevsnp/{path.parent.name}"
    for path in (PROJECT / "sevsnp").glob("*/__init__.py")
    if path.parent.name not in NOT_PRODUCTION
)
WALLED_OFF = "sevsnp.emulation"
# By a string, and only for what says that it is emulated: launching, the owner's choice by VM config, and the emulated
# verifier's wrapper.
MAY_LOAD_EMULATION = {
    "sevsnp/qemu/platforms.py",
    "sevsnp/owner/attestation.py",
    "sevsnp/commands/tools.py",
    "sevsnp/commands/verify_report_emulated.py",
}


def output(*argv: str) -> str:
    return subprocess.run(argv, cwd=PROJECT, check=True, capture_output=True, text=True).stdout


@functools.cache
def project_files() -> tuple[Path, ...]:
    """What is in the repository, and what is about to be."""
    # safe.directory: a checkout that belongs to another user is still ours to read.
    listed = output("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return tuple(path for name in listed.split("\0") if name and (path := PROJECT / name).is_file())


def relative(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def python_files(*folders: str) -> list[Path]:
    below = tuple(f"{folder}/" for folder in folders) or ("",)
    return [path for path in project_files() if path.suffix == ".py" and relative(path).startswith(below)]


def linter(name: str, *more: str) -> str:
    """What a linter says, as `./doitw lint` runs it."""
    argv = [sys.executable, *LINTERS[name], *more]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"
    return done.stdout


def test_ruff() -> None:
    linter("ruff check")


def yaml_readers(source: str) -> set[str]:
    """The functions of PyYAML that read, as ``source`` calls them."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [one for one in calls if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name)]
    read = ("load", "load_all", "safe_load", "safe_load_all", "full_load", "unsafe_load")
    return {one.attr for one in named if one.value.id == "yaml" and one.attr in read}  # type: ignore[attr-defined]


def test_yaml_is_read_by_one_loader() -> None:
    """Any other loader would keep the last of two equal keys without an error."""
    assert yaml_readers("import yaml\nyaml.safe_load(text)\nyaml.load(text, x)") == {"safe_load", "load"}  # control
    readers = {relative(path) for path in python_files("sevsnp", "tasks") if yaml_readers(path.read_text())}
    assert readers == {"sevsnp/system/yaml_loader.py"}


def test_mypy() -> None:
    # What to check and how strictly stands in pyproject.toml. Nobody would use what mypy keeps of a run in CI.
    linter("mypy", *(["--cache-dir", os.devnull] if os.environ.get("CI") else []))


def test_pyproject_has_mypy_check_everything_strictly() -> None:
    import tomllib

    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"] is True
    assert set(settings["files"]) >= {"dodo.py", "tasks", "sevsnp", "initramfs", "tests"}


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The full names of the modules that ``tree``, a module in ``package``, imports; with what it takes from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string in ``tree`` but the docstrings: a module can be loaded by a name that is only text."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def names_module(text: str, module: str) -> bool:
    return re.fullmatch(rf"{re.escape(module)}([.:].*)?", text, re.DOTALL) is not None


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import sevsnp.emulation.psp", True),
        ("from sevsnp.emulation import psp", True),
        ("from sevsnp import emulation", True),
        ("def f():\n    from ..emulation.psp import sign", True),
        ("from .. import emulation", True),
        ("import_module('sevsnp.emulation.launch')", True),
        ("task('sevsnp.emulation.launch:run')", True),
        ("'''sevsnp.emulation'''\nfrom . import emulation", False),
        ("import sevsnp.emulations", False),
    ],
)
def test_control_imports_of_the_emulation_are_detected(source: str, found: bool) -> None:
    assert reaches_emulation(ast.parse(source), "sevsnp.host") is found


def reaches_emulation(tree: ast.AST, package: str) -> bool:
    return any(names_module(name, WALLED_OFF) for name in (*imports(tree, package), *strings(tree)))


def test_every_source_file_names_its_licence() -> None:
    without = [
        relative(path)
        for path in python_files()
        if "SPDX-License-Identifier: Apache-2.0" not in "".join(path.read_text().splitlines(keepends=True)[:2])
    ]
    assert without == []


def test_every_module_has_a_room() -> None:
    assert {path.name for path in python_files("sevsnp") if path.parent.name == "sevsnp"} == {
        "__init__.py",
        "errors.py",
    }


def test_the_rooms_import_only_downward() -> None:
    """The contracts are in pyproject.toml."""
    assert "0 broken" in linter("lint-imports")


def test_production_does_not_import_the_emulation() -> None:
    reaching = {
        relative(path)
        for path in python_files(*PRODUCTION)
        if reaches_emulation(ast.parse(path.read_text()), ".".join(path.relative_to(PROJECT).parent.parts))
    }
    assert reaching <= MAY_LOAD_EMULATION


def test_loading_all_of_production_loads_no_emulation() -> None:
    # What the tree of imports of each file cannot show: the way there over a third module.
    modules = [
        relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in python_files(*PRODUCTION)
        if path.name != "verify_report_emulated.py"
    ]
    assert "sevsnp.vm_config.config" in modules
    script = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        f"print(json.dumps([name for name in sys.modules if name.startswith({WALLED_OFF!r})]))"
    )
    assert json.loads(output(sys.executable, "-c", script, json.dumps(modules))) == []


def guest_files() -> list[Path]:
    """The modules that run in the guest: those under initramfs/, and what its lists take from elsewhere."""
    files = {path.resolve() for path in python_files("initramfs")}
    for listing in (PROJECT / "initramfs").rglob("*.yaml"):
        sources = re.findall(r"\bsource:\s*([^\s,}]+\.py)\b", listing.read_text())
        files |= {(listing.parent / source).resolve() for source in sources}
    return sorted(files)


def test_the_programs_of_the_guest_need_only_python() -> None:
    files = guest_files()
    assert PROJECT / "initramfs/agent.py" in files
    siblings = {path.stem for path in files} | {"appliance"}
    foreign = {
        f"{relative(path)}: {name}"
        for path in files
        for name in imports(ast.parse(path.read_text()), "initramfs")
        if name.split(".")[0] not in sys.stdlib_module_names | siblings
    }
    assert foreign == set()


def test_get_report_is_one_file() -> None:
    tree = ast.parse((PROJECT / "initramfs/get_report.py").read_text())
    assert {name.split(".")[0] for name in imports(tree, "")} <= sys.stdlib_module_names


def test_modules_are_short() -> None:
    long = {
        relative(path): count
        for path in python_files()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_MODULE
    }
    assert long == {}


def configured_hosts() -> set[str]:
    """The hosts this machine's package managers are configured with; so that this file need not name any."""
    texts = []
    for source in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
        with contextlib.suppress(OSError):
            texts.append(source.read_text(errors="replace"))
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        texts.append(output(sys.executable, "-m", "pip", "config", "list"))
        texts.append(
            output(
                sys.executable,
                "-c",
                "from pip._internal.models.index import PyPI as p;"
                "print('https://' + p.netloc, 'https://' + p.file_storage_domain)",
            )
        )
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        texts.append(output("npm", "config", "get", "registry"))
    found = re.findall(r"https?://(?:[^/\s'\"@]*@)?([A-Za-z0-9.-]+)", "\n".join(texts))
    # A mirror on the machine itself, or one without a domain, has a name that text may use for other things.
    return {host for host in found if "." in host and not host.startswith("127.")}


def test_no_file_names_a_package_registry() -> None:
    hosts = configured_hosts()
    assert hosts, "neither apt nor pip is configured here"
    pattern = re.compile("|".join(re.escape(host) for host in sorted(hosts)).encode())
    assert {relative(path) for path in project_files() if pattern.search(path.read_bytes())} == set()


def test_no_file_names_a_path_of_this_machine() -> None:
    places = {PROJECT, Path(sys.prefix)}
    home = Path(os.environ.get("HOME", "/"))
    # /root is in every guest as well.
    if home.parent != Path("/"):
        places.add(home)
    words = [os.fsencode(place) for place in places if len(place.parts) > 2]
    named = {relative(path) for path in project_files() if any(word in path.read_bytes() for word in words)}
    assert named == set()


def test_no_symbolic_link_is_tracked() -> None:
    """A link that leads out of the repository names a path of one machine, and every clone would follow it."""
    tracked = output("git", "-c", "safe.directory=*", "ls-files", "--stage").splitlines()
    assert [line for line in tracked if line.startswith("120000")] == []


LOCKS = ("requirements.lock", "requirements-test.lock")


def pins(lock: str) -> dict[str, str]:
    """The requirements of a lock by name, each with its version and its hashes."""
    text = (PROJECT / lock).read_text().replace("\\\n", "")
    return {line.split("==")[0]: line for line in text.splitlines() if line and not line.startswith("#")}


@pytest.mark.parametrize("lock", LOCKS)
def test_the_locks_pin_by_hash_and_name_no_index(lock: str) -> None:
    text = (PROJECT / lock).read_text()
    assert pins(lock)
    form = r"[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}"
    assert [line for line in pins(lock).values() if not re.match(form, line)] == []
    assert re.search(r"://|^\s*--(extra-)?index|^\s*--find", text, re.MULTILINE) is None


def test_the_locks_cover_pyproject_and_agree() -> None:
    import tomllib

    document = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    project = document["project"]
    users = [*project["dependencies"], *project["optional-dependencies"]["pipeline"]]
    asked = (users, document["dependency-groups"]["test"])
    for lock, requirements in zip(LOCKS, asked, strict=True):
        assert {re.split(r"[^A-Za-z0-9._-]", one)[0].lower() for one in requirements} <= set(pins(lock))
    needed, for_tests = (
        {name: (line.split()[0], re.findall("sha256:[0-9a-f]+", line)) for name, line in pins(lock).items()}
        for lock in LOCKS
    )
    assert {name: needed[name] for name in needed.keys() & for_tests} == {
        name: for_tests[name] for name in needed.keys() & for_tests
    }
    # What only tests need is in no user's environment.
    assert not {"pytest", "mypy", "ruff", "hypothesis", "sev-snp-measure"} & needed.keys()


def test_programs_of_users_need_no_package_of_the_tests() -> None:
    """All modules are loaded with only the packages of requirements.lock; bench may need more, which doitw knows."""
    extra = {
        name.replace("-", "_") for name in pins("requirements-test.lock").keys() - pins("requirements.lock").keys()
    }
    assert "pytest" in extra
    extra |= {"xdist", "sevsnpmeasure"}
    reached = {
        f"{relative(path)}: {name}"
        for path in python_files("sevsnp", "tasks")
        for name in imports(ast.parse(path.read_text()), ".".join(path.relative_to(PROJECT).parent.parts))
        if name.split(".")[0] in extra
    }
    assert {line.split(":")[0] for line in reached} == {"sevsnp/bench/launch_digest.py"}, reached
