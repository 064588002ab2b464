# SPDX-License-Identifier: Apache-2.0
"""A picture of the pipeline, drawn from doit's own tasks: which artefact is made from which.

The description is text for Graphviz's dot, the same on every machine. The SVG contains the description's digest, so
that an outdated picture can be recognised without dot.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.pipeline.tasks import YOURS

# Colours that are readable on white and on black: filled nodes have their own background, the rest is a middle grey.
INK, GREY = "#1c2733", "#7d8590"
ARTEFACT, STEP, COMMAND = "#cfe3f7", "#e9eef3", "#f6d9a8"
FONT = "Helvetica,Arial,sans-serif"

# Arguments of commands for files that are used where they exist: the command needs no task for them.
_IF_BUILT = ("if_built", "if_built_configs")

_DIGEST = re.compile(r"<!-- sha256 of its description: ([0-9a-f]{64}) -->")


@dataclass(frozen=True)
class Node:
    """A task: its ``stage`` is the module in tasks/ that defines it; a ``command`` leaves no artefact."""

    name: str
    stage: str
    command: bool

    @property
    def label(self) -> str:
        """Its name as the user types it, or a helper's name in plain words."""
        plain = self.name[1:].replace("_", " ") if self.name.startswith("_") else self.name
        return YOURS.get(self.name, plain)


@dataclass(frozen=True)
class Graph:
    """Tasks by name, files and directories of the checkout that they start from, and the edges between them."""

    nodes: Mapping[str, Node]
    sources: frozenset[str]
    edges: frozenset[tuple[str, str]]


def load() -> list[tuple[Any, str]]:
    """The tasks of the checkout in the working directory, each with its stage.

    Call it in a separate process: loading dodo.py sets the umask and signal handlers.
    """
    from doit.loader import load_tasks

    import dodo

    makers = {name.removeprefix("task_"): maker for name, maker in vars(dodo).items() if name.startswith("task_")}
    return [
        (task, str(makers[task.subtask_of or task.name].__module__).rpartition(".")[2])
        for task in load_tasks(vars(dodo), allow_delayed=True)
    ]


def read_graph(tasks: Iterable[tuple[Any, str]]) -> Graph:
    """The graph of doit's tasks: files that one task makes and another needs, and tasks that need tasks.

    A command declares no files that it needs; the paths among its arguments count instead. Tasks that make nothing and
    cannot be called by name (checks, locks) are left out. So are edges that others imply, and tasks without edges.
    """
    tasks = [(task, stage) for task, stage in tasks if task.targets or not task.name.startswith("_")]
    nodes = {task.name: Node(task.name, stage, not task.targets and bool(task.actions)) for task, stage in tasks}
    maker = {os.path.normpath(target): task.name for task, _ in tasks for target in task.targets}
    needed = {os.path.normpath(path) for task, _ in tasks for path in task.file_dep}
    edges = {(name, task.name) for task, _ in tasks for name in task.task_dep if name in nodes}
    for task, _ in tasks:
        edges |= {(maker.get(path) or _source(path), task.name) for path in map(os.path.normpath, task.file_dep)}
        if not nodes[task.name].command:
            continue
        for argument, path in arguments(task):
            if argument == "output":
                # The output is not the command's target: otherwise each task that needs the file would run the command.
                edges |= {(task.name, _source(path))} if path in needed - maker.keys() else set()
            elif path in maker:
                edges.add((maker[path], task.name))
            elif os.sep in path:
                # A directory argument stands for the artefacts in it; all of build/ would mean nothing.
                edges |= {(name, task.name) for made, name in maker.items() if made.startswith(path + os.sep)}
    edges = {edge for edge in edges if edge[0] != edge[1] and "" not in edge}
    # A directory is many files: a path through one of them says nothing about the others.
    kept = _reduced({edge for edge in edges if edge[0] in nodes}) | {edge for edge in edges if edge[0] not in nodes}
    ends = {end for edge in kept for end in edge}
    return Graph(
        {name: node for name, node in nodes.items() if name in ends}, frozenset(ends - nodes.keys()), frozenset(kept)
    )


def _source(path: str) -> str:
    """How a file of the checkout is shown: as the file or directory at its top; empty for code and files elsewhere."""
    top, _, below = path.partition(os.sep)
    return "" if top in ("", "sevsnp", "tasks") else f"{top}/" if below else top


def arguments(task: Any) -> set[tuple[str, str]]:
    """The relative paths among the arguments of a task's actions that it needs, each with the name of the argument."""
    return {pair for action in task.actions for pair in _paths("", vars(action)) if pair[0] not in _IF_BUILT}


def _paths(argument: str, value: Any) -> Iterator[tuple[str, str]]:
    """The relative paths among a task's arguments, nested or not, with the name of the argument."""
    if isinstance(value, Path):
        if not value.is_absolute():
            yield argument, os.path.normpath(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _paths(str(name), item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(argument, item)


def _reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Remove the edges beside which there is a longer way."""
    after: dict[str, set[str]] = {}
    for start, end in edges:
        after.setdefault(start, set()).add(end)
    reached: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in reached:
            reached[name] = set()  # doit has refused cycles
            reached[name] = {end for near in after.get(name, ()) for end in {near, *reach(near)}}
        return reached[name]

    return {(start, end) for start, end in edges if not any(end in reach(other) for other in after[start] - {end})}


def describe(graph: Graph) -> str:
    """The graph in dot's language: a box for each stage; commands differ from artefacts in shape and colour."""
    lines = [
        "digraph pipeline {",
        '  graph [bgcolor="transparent", labeljust="l", rankdir="LR", ranksep=0.35, nodesep=0.12, newrank=true];',
        f'  node [fontname="{FONT}", fontsize=12, fontcolor="{INK}", color="{GREY}", height=0.3, margin="0.1,0.04"];',
        f'  edge [color="{GREY}", arrowsize=0.6];',
    ]
    for source in sorted(graph.sources):
        lines.append(f'  "{source}" [shape="plaintext", fontsize=10, fontcolor="{GREY}"];')
    stages: dict[str, list[Node]] = {}
    for _, node in sorted(graph.nodes.items()):
        stages.setdefault(node.stage, []).append(node)
    for stage, nodes in sorted(stages.items()):
        lines.append(f'  subgraph "cluster_{stage}" {{')
        lines.append(
            f'    graph [label="{stage}", fontname="{FONT}", fontsize=11, fontcolor="{GREY}", color="{GREY}"];'
        )
        lines += [f'    "{node.name}" [label="{node.label}", {_look(node)}];' for node in nodes]
        lines.append("  }")
    for start, end in sorted(graph.edges):
        lines.append(f'  "{start}" -> "{end}"{" [style=dashed]" if start in graph.sources else ""};')
    return "\n".join([*lines, "}"]) + "\n"


def _look(node: Node) -> str:
    if node.command:
        return f'shape="cds", style="filled", fillcolor="{COMMAND}"'
    return f'shape="box", style="filled,rounded", fillcolor="{STEP if node.name.startswith("_") else ARTEFACT}"'


def current_description() -> str:
    """The description of the checkout in the working directory, independent of the user's settings for this run."""
    from sevsnp.system.command import run

    # A separate process gets an environment without the user's settings, and -m finds dodo.py in the working directory.
    return run([sys.executable, "-m", "sevsnp.project.graph"]).decode()


def digest(description: str) -> str:
    """SHA-256 of a description as hex digits."""
    return hashlib.sha256(description.encode()).hexdigest()


def drawn_digest(svg: Path) -> str:
    """The digest of the description from which a picture was drawn; empty if the picture has none."""
    match = _DIGEST.search(svg.read_text())
    return match[1] if match else ""


def draw(output: Path) -> None:
    """Write the picture of the pipeline as SVG. Raises UserError if dot is missing."""
    from sevsnp.project.dependencies import GRAPHVIZ, install_dependencies
    from sevsnp.system.command import run
    from sevsnp.system.files import write_atomic

    if not GRAPHVIZ.present():
        install_dependencies([GRAPHVIZ])

    description = current_description()
    svg = run(["dot", "-Tsvg"], stdin=description.encode(), hint="run as root: apt-get install graphviz").decode()
    # dot's own comments contain its version, which does not matter for the picture.
    svg = re.sub(r"<!(--.*?--|DOCTYPE.*?)>\n?", "", svg, flags=re.DOTALL)
    svg = svg.replace("<g id=", f"<!-- sha256 of its description: {digest(description)} -->\n<g id=", 1)
    write_atomic(output, svg)
    print(f"{output}: drawn")


if __name__ == "__main__":
    sys.stdout.write(describe(read_graph(load())))
