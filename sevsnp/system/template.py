# SPDX-License-Identifier: Apache-2.0
"""Finds and renders the files of templates/. Rendering is strict: a missing value is an error."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_PACKAGE = Path(__file__).resolve().parents[1]


def find_template(name: str) -> Path:
    """The file ``name`` in templates/: beside the package in a checkout, inside it after pip has installed it."""
    installed = _PACKAGE / "templates" / name
    return installed if installed.is_file() else _PACKAGE.parent / "templates" / name


def html_template(path: Path) -> "Template":
    """A template of HTML or SVG: inserted values are escaped."""
    return _environment(path.parent.absolute(), html=True).get_template(path.name)


def text_template(path: Path) -> "Template":
    """A template of another language: it escapes values itself, with tojson. TOML's strings are JSON's, too."""
    return _environment(path.parent.absolute(), html=False).get_template(path.name)


@cache  # a build has several VM configs, and compiling their template takes as long as everything else
def _environment(directory: Path, *, html: bool) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(directory),
        undefined=StrictUndefined,
        autoescape=html,  # noqa: S701 - other languages have their own
        trim_blocks=html,
        lstrip_blocks=html,
        keep_trailing_newline=True,
    )
    # TOML takes JSON's strings if they are UTF-8; it does not take surrogate pairs.
    found.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return found
