# SPDX-License-Identifier: Apache-2.0
"""Where the files of templates/ are, and how they are filled in: strictly, so that a missing value is an error."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_PACKAGE = Path(__file__).resolve().parents[1]


def find_template(name: str) -> Path:
    """The file of that name in templates/: beside the package in a checkout, inside it once pip has installed it."""
    installed = _PACKAGE / "templates" / name
    return installed if installed.is_file() else _PACKAGE.parent / "templates" / name


def html_template(path: Path) -> "Template":
    """A template of HTML or SVG: what is filled in is escaped."""
    return _environment(path.parent.absolute(), html=True).get_template(path.name)


def text_template(path: Path) -> "Template":
    """A template of anything else, whose escaping is its own, by tojson: its strings are TOML's too."""
    return _environment(path.parent.absolute(), html=False).get_template(path.name)


@cache  # a build has several VM configs, and their template takes as long to compile as all else
def _environment(directory: Path, *, html: bool) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(directory),
        undefined=StrictUndefined,
        autoescape=html,  # noqa: S701 - what is no HTML has its own
        trim_blocks=html,
        lstrip_blocks=html,
        keep_trailing_newline=True,
    )
    # TOML takes JSON's strings as long as they are UTF-8, and not pairs of surrogates.
    found.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return found
