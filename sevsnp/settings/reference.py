# SPDX-License-Identifier: Apache-2.0
"""Make docs/settings.md from the table: `.venv/bin/python -m sevsnp.settings.reference >docs/settings.md`."""

from sevsnp.settings.table import GROUPS, Setting

_HEAD = """\
# Settings

`NAME=value` on the command line, a variable of the environment, or a line `name: value` in `config.yaml`; the first of
these that there is counts. The help of a task shows those that it reads with the present values of the others:
`help setup_verity DATA_SIZE=1G` also shows `DATA_PATH`. This page is made from the table in `sevsnp/settings/table.py`.
"""


def render_reference() -> str:
    """The page as text: a table for each group."""
    lines = [_HEAD]
    for title, settings in GROUPS:
        heading, _, more = title.rstrip(".").partition(": ")
        lines += [f"## {heading}", "", *([f"({more})", ""] if more else [])]
        lines += ["| setting | default | what it is | expected |", "|---|---|---|---|"]
        lines += [_row(setting) for setting in settings] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _row(setting: Setting) -> str:
    default = f"`{setting.default}`" if setting.default else "empty"
    cells = (f"`{setting.name}`", default, setting.help, setting.expected)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(render_reference(), end="")
