# SPDX-License-Identifier: Apache-2.0
"""Pictures in docs/ that are made from the project itself."""

from pathlib import Path

from tasks.graph import Task, command


def task_graph() -> Task:
    """Draw the pipeline from its tasks: docs/pipeline.svg (needs graphviz)

    Draws what is made from what. A test says when the picture is no longer current.

    Next: commit docs/pipeline.svg.
    """
    return command("sevsnp.project.graph:draw", output=Path("docs/pipeline.svg"))
