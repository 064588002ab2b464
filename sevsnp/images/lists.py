# SPDX-License-Identifier: Apache-2.0
"""Reads the YAML lists under initramfs/ and guest-vm/: the content of each layer, and exclusions, one line an item."""

import os.path
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system.yaml_loader import load

_NAMES = ("exclude", "directories", "python")
_FILES = ("init", "emulated", "plain", "appliance")
_EXPECTED = {
    "path": "a path in the guest",
    "source": "a path to a file here",
    "mode": 'octal digits in quotes, as "0755"',
}


def read_list(path: Path, *keys: str) -> dict[str, list[Any]]:
    """The lists of a YAML file under the given top-level keys; no other key may exist. A missing list is empty."""
    document = load(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: found a {type(document).__name__}, expected the keys {', '.join(keys)}")
    for key, items in document.items():
        if key not in keys:
            raise UserError(f"{path}: unknown key {key!r}, expected {', '.join(keys)}")
        if not isinstance(items, list | None):
            raise UserError(f"{path}: {key}: found {items!r}, expected a list, one line an item")
    return {key: document.get(key) or [] for key in keys}


def read_names(path: Path, *keys: str, others: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Like :func:`read_list`, for lists of names. ``others`` are lists of the same file with other content."""
    lists = read_list(path, *keys, *others)
    for key in keys:
        for item in lists[key]:
            if not isinstance(item, str):
                raise UserError(f"{path}: {key}: found {item!r}, expected a name")
    return {key: lists[key] for key in keys}


def read_classes(path: Path, form: str, expected: str) -> dict[str, list[str]]:
    """Patterns by class; no class is empty.

    Raises UserError for a pattern that does not match the regular expression ``form``, which ``expected`` describes in
    words, or that occurs twice.
    """
    return _classes(path, load(path), form, expected, set())


def read_scopes(path: Path, scopes: Sequence[str], form: str, expected: str) -> dict[str, dict[str, list[str]]]:
    """Patterns by scope and class, as :func:`read_classes`; a scope may be absent, and no other key may exist."""
    document = load(path)
    if not isinstance(document, dict) or not document or not set(document) <= set(scopes):
        found = ", ".join(map(str, document)) if isinstance(document, dict) else f"a {type(document).__name__}"
        raise UserError(f"{path}: found {found or 'nothing'}, expected the keys {', '.join(scopes)}")
    seen: set[str] = set()
    return {scope: _classes(path, document[scope], form, expected, seen) for scope in scopes if scope in document}


def _classes(path: Path, document: Any, form: str, expected: str, seen: set[str]) -> dict[str, list[str]]:
    if not isinstance(document, dict) or not document:
        raise UserError(f"{path}: found a {type(document).__name__}, expected lists, each under what it is about")
    for name, patterns in document.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: found {name!r}, expected a text that describes its list")
        if not isinstance(patterns, list) or not patterns:
            raise UserError(f"{path}: {name}: found {patterns!r}, expected a list, one line an item")
        for pattern in patterns:
            if not isinstance(pattern, str) or not re.fullmatch(form, pattern):
                raise UserError(f"{path}: {name}: found {pattern!r}, expected {expected}")
            if pattern in seen:
                raise UserError(f"{path}: {name}: {pattern} is given twice")
            seen.add(pattern)
    return document


def read_files_list(path: Path) -> dict[str, list[str]]:
    """The lists of names in files.yaml: ``exclude``, ``directories`` and ``python``."""
    return read_names(path, *_NAMES, others=_FILES)


def layer_files(files: Path, layer: str) -> list[dict[str, str]]:
    """The entries of one layer of files.yaml: ``path`` in the guest, ``source`` here, and ``mode`` (octal text)."""
    return _checked_files(files, layer, read_list(files, *_NAMES, *_FILES)[layer])


def layer_sources(files: Path) -> dict[str, list[Path]]:
    """The source files of each layer of files.yaml, by the layer's name."""
    lists = read_list(files, *_NAMES, *_FILES)
    return {
        layer: [
            Path(os.path.normpath(files.parent / item["source"])) for item in _checked_files(files, layer, lists[layer])
        ]
        for layer in _FILES
    }


def _checked_files(files: Path, layer: str, items: list[Any]) -> list[dict[str, str]]:
    for item in items:
        where = f"{files}: {layer}"
        if not isinstance(item, dict) or not {"path", "source"} <= item.keys() <= {"path", "source", "mode"}:
            raise UserError(f"{where}: found {item!r}, expected path, source and perhaps mode")
        for key, value in item.items():
            # YAML reads an unquoted 0755 as the number 493.
            if not isinstance(value, str) or (key == "mode" and not re.fullmatch("[0-7]{3,4}", value)):
                raise UserError(f"{where}: {key}: found {value!r}, expected {_EXPECTED[key]}")
        if not {"", ".", ".."}.isdisjoint(item["path"].split("/")):
            raise UserError(f"{where}: path: found {item['path']!r}, expected one like usr/bin/tool")
        if not (files.parent / item["source"]).is_file():
            raise UserError(f"{where}: {item['source']}: no such file")
    return items
