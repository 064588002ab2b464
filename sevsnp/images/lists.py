"""The YAML lists under initramfs/: what goes into which layer, one line an item."""

from pathlib import Path
from typing import Any

from sevsnp.errors import UserError

_FILES_KEYS = ("exclude", "directories", "init", "emulated", "plain")


def read_list(path: Path, *keys: str) -> dict[str, Any]:
    """A YAML list file with just the given top-level keys."""
    import yaml  # doit loads this module for every command

    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: found a {type(document).__name__}, expected the keys {', '.join(keys)}")
    for key in document:
        if key not in keys:
            raise UserError(f"{path}: unknown key {key!r}, expected {', '.join(keys)}")
    return document


def read_files_list(path: Path) -> dict[str, Any]:
    """The document of files.yaml."""
    return read_list(path, *_FILES_KEYS)


def layer_files(files: Path, layer: str) -> list[dict[str, Any]]:
    """The entries of one layer of files.yaml: ``path`` in the guest, ``source`` here, and ``mode`` (octal text)."""
    items = read_files_list(files).get(layer, [])
    for item in items:
        if not isinstance(item, dict) or not {"path", "source"} <= item.keys() <= {"path", "source", "mode"}:
            raise UserError(f"{files}: {layer}: found {item!r}, expected path, source and perhaps mode")
        if not (files.parent / item["source"]).is_file():
            raise UserError(f"{files}: {layer}: {item['source']}: no such file")
    return list(items)


def layer_sources(files: Path, layer: str) -> list[Path]:
    """The files that one layer is made of."""
    import os.path

    return [Path(os.path.normpath(files.parent / item["source"])) for item in layer_files(files, layer)]
