"""Pictures in docs/ that are made from the project itself."""

from pathlib import Path

from tasks.graph import UNLISTED, Task, command


def task_graph() -> Task:
    """Draw the pipeline from its tasks: docs/pipeline.svg (needs graphviz)"""
    return {**command("sevsnp.graph:draw", output=Path("docs/pipeline.svg")), "meta": UNLISTED}
