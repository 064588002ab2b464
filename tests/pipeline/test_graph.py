# SPDX-License-Identifier: Apache-2.0
"""docs/pipeline.svg: it is current, the same for every user, and drawn from the tasks that doit runs."""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.project.graph import current_description, describe, digest, draw, drawn_digest, read_graph
from tests.conftest import PROJECT, copy_project
from tests.pipeline.test_manifest import LUKS
from tests.support.replacing import replaced_once

PICTURE = PROJECT / "docs" / "pipeline.svg"
# Commands that build nothing: where a file is missing, each names the command that makes it.
TAKE_WHAT_IS_THERE = {
    *("run_guest", "run_setup", "run_sev_snp", "run_sev_snp_direct_boot", "attest_verity", "keys", "keys_prune"),
    *("export_libvirt", "export_kubevirt", "export_vmspawn"),
}
READ_BUT_NOT_MADE = """
import os
from sevsnp.pipeline.tasks import Tasks
from sevsnp.project.graph import arguments, load
tasks = Tasks(task for task, _ in load())
maker = {os.path.normpath(path): task.name for task in tasks.by_name.values() for path in task.targets}
for task in tasks.by_name.values():
    read = {maker[path] for _, path in arguments(task) if path in maker} if not task.targets else set()
    print(*(f"{task.name} {other}\\n" for other in read - tasks.all_needed(task.name)), sep="", end="")
"""
# Cached results of results that are not: of the user's own files, and of keys.
CACHED_OF_OWN = """
from sevsnp.pipeline.tasks import Tasks
from sevsnp.project.graph import load
from sevsnp.store.artefact import Artefact
tasks = Tasks(task for task, _ in load())
cached = {
    name: item.cached
    for name, task in tasks.by_name.items()
    for item, *_ in task.uptodate
    if isinstance(item, Artefact)
}
# What is made without an artefact (ID blocks, a data disk) is of the user's keys; of the keys themselves, the public
# ones are in what is shared.
cached |= {name: False for name, task in tasks.by_name.items() if task.targets and name not in {"_keys", *cached}}
for name in cached:
    if cached[name] and not all(cached.get(other, True) for other in tasks.all_needed(name)):
        print(name)
"""
# Of these files, they have only digests.
DIGESTS = {f"_verity_{name}{suffix}" for name in ("cmdline", "config") for suffix in ("", "_emulated")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project under another name, with nothing built."""
    target = tmp_path_factory.mktemp("clone") / "elsewhere"
    copy_project(target)
    return target


def described(project: Path, **variables: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "sevsnp.project.graph"],
        cwd=project,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_the_picture_is_current(clone: Path) -> None:
    assert drawn_digest(PICTURE) == digest(described(clone)), "run: ./doitw graph"


def test_one_more_task_makes_the_picture_outdated(clone: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(clone, copy)
    tools = copy / "tasks" / "tools.py"
    tools.write_text(
        f"{tools.read_text()}\n\ndef task_more() -> Task:\n"
        '    inputs, outputs = {"x": BIN / "get_report"}, {"output": BUILD / "more"}\n'
        '    return artefact("sevsnp.commands.tools:more", inputs=inputs, outputs=outputs)\n'
    )
    text = described(copy)
    assert '"build_tools" -> "more";' in text
    assert digest(text) != digest(described(clone))


def test_the_description_does_not_depend_on_the_user(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = described(clone)
    assert text == described(PROJECT, HOME=str(tmp_path))
    # A setting of the user's is another graph, which the picture in the documentation is not.
    assert text != described(clone, KERNEL_DEB="README.md")
    monkeypatch.chdir(clone)
    monkeypatch.setenv("KERNEL_DEB", "README.md")
    assert current_description() == text
    # Nor on what is built: manifest lists a volume where there is one.
    for name in LUKS:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    assert described(clone) == text
    shutil.rmtree(clone / "build")
    for place in (str(tmp_path), str(PROJECT), str(clone), "/home", "/root", ".config"):
        assert place not in text


def test_the_description_has_the_main_tasks_and_their_edges(clone: Path) -> None:
    text = described(clone)
    nodes = dict(re.findall(r'^ +"(\S+)" \[label="([^"]+)"', text, re.MULTILINE))
    assert {"packages", "initramfs", "create_new_vm", "setup_verity", "host_bundle", "e2e"} <= set(nodes)
    assert nodes["_verity_root"] == "verity root" and nodes["_keys"] == "your keys"
    assert not {"_dependencies", "_welcome", "install_dependencies", "graph", "test"} & set(nodes)
    assert '"_verity_root" -> "_verity_cmdline";' in text and '"_guest_packages" -> "_verity_root";' in text
    assert '"_guest_packages" -> "_verity_cmdline"' not in text  # implied
    shapes = dict(re.findall(r'^ +"(\S+)" \[label="[^"]+", shape="(\w+)"', text, re.MULTILINE))
    assert {shapes[name] for name in ("e2e", "run_guest", "attest_verity")} == {"cds"}
    assert {shapes[name] for name in ("packages", "_keys", "setup_verity")} == {"box"}


def changed(clone: Path, target: Path, name: str, old: str, new: str) -> Path:
    """A copy of the project, without the tests, with a change in one file."""
    shutil.copytree(clone, target, ignore=shutil.ignore_patterns("tests"))
    (target / name).write_text(replaced_once((target / name).read_text(), old, new))
    return target


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(
    "variables", [{}, {"GUEST_FROM": "cloud-image", "CLOUD_IMAGE": "README.md"}], ids=["", "cloud"]
)
def test_a_command_needs_the_tasks_that_make_what_it_reads(
    clone: Path, tmp_path: Path, broken: bool, variables: dict[str, str]
) -> None:
    copy = changed(clone, tmp_path / "project", "tasks/bench.py", '"_guest_rootfs"', "") if broken else clone
    done = subprocess.run(
        [sys.executable, "-c", READ_BUT_NOT_MADE],
        cwd=copy, env={"PATH": os.environ["PATH"], **variables},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = [line.split() for line in done.stdout.splitlines()]
    assert {task for task, _ in found} - TAKE_WHAT_IS_THERE == ({"bench:boot"} if broken else set()), found
    assert {task for task, _ in found} >= TAKE_WHAT_IS_THERE


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("setting", ["IMAGE=README.md", "FROM_INITRD=README.md", "ID_KEY=README.md", "DATA_SIZE=1G"])
def test_what_holds_the_users_own_files_is_not_cached(clone: Path, tmp_path: Path, setting: str, shared: bool) -> None:
    copy = changed(clone, tmp_path / "project", "tasks/e2e.py", "cached=not own", "cached=True") if shared else clone
    done = subprocess.run(
        [sys.executable, "-c", CACHED_OF_OWN],
        cwd=copy, env={"PATH": os.environ["PATH"], **dict([setting.split("=")])},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert set(done.stdout.split()) - DIGESTS == ({"host_bundle"} if shared else set())


def task(name: str, makes: str = "", needs: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> tuple[Any, str]:
    from doit.task import dict_to_task

    made = {"name": name, "targets": [makes] if makes else [], "file_dep": list(needs), "task_dep": list(after)}
    return dict_to_task({**made, "actions": ["true"]}), "stage"


def test_files_and_tasks_make_edges_and_implied_edges_are_left_out() -> None:
    graph = read_graph(
        [
            task("first", "build/a", ("src/one", "src/two")),
            task("second", "build/b", ("build/a", "./build/../src/one")),
            task("third", "build/c", ("build/a", "build/b")),
            task("run", after=("first", "third")),
            task("_check", after=("first",)),
            task("alone"),
        ]
    )
    assert graph.edges == {
        ("src/", "first"),
        ("src/", "second"),
        ("first", "second"),
        ("second", "third"),
        ("third", "run"),
    }
    assert set(graph.nodes) == {"first", "second", "third", "run"}
    assert graph.nodes["run"].command and not graph.nodes["third"].command


def test_the_picture_is_readable_on_light_and_dark_backgrounds() -> None:
    root = ElementTree.parse(PICTURE).getroot()
    assert root.tag.endswith("svg") and "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", PICTURE.read_text())
    # No ground of its own, and no ink that one of the two swallows outside of a filled shape.
    assert "white" not in PICTURE.read_text() and "black" not in PICTURE.read_text()


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs graphviz, as doit graph does")
def test_drawing(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    drawn = tmp_path / "docs" / "pipeline.svg"
    draw(drawn)
    assert drawn_digest(drawn) == digest(described(clone))
    texts = {node.text for node in ElementTree.parse(drawn).iter() if node.tag.endswith("text")}
    assert {"verity root", "setup_verity", "packages.lock"} <= texts


def test_without_dot_it_says_what_to_install(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setattr("sevsnp.system.command._SBIN", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"apt-get: command not found.*\n.*graphviz"):
        draw(tmp_path / "pipeline.svg")


def test_the_description_does_not_depend_on_the_order_of_the_tasks() -> None:
    tasks = [task("a", "x"), task("b", "y", ("x",)), task("c", "z", ("x",))]
    assert describe(read_graph(tasks)) == describe(read_graph(tasks[::-1]))
