# SPDX-License-Identifier: Apache-2.0
"""Where the files of templates/ are: beside the package in a checkout, inside it once pip has installed it."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def find_template(name: str) -> Path:
    """The file of that name in templates/, which pyproject.toml installs as the package sevsnp.templates."""
    installed = _PACKAGE / "templates" / name
    return installed if installed.is_file() else _PACKAGE.parent / "templates" / name
