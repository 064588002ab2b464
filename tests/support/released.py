# SPDX-License-Identifier: Apache-2.0
"""For the tests of the release manifest: a built project with its signed manifest, to be tampered with."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from sevsnp.errors import UserError
from sevsnp.release.contents import Contents
from sevsnp.release.manifest import render_manifest
from sevsnp.release.verify import verify_manifest
from tests.conftest import Built
from tests.support.copies import copy_built
from tests.unit.keys.test_signature import make_key, public_half

CONFIG = {platform: f"build/verity/vm-config-verity{suffix}.toml" for platform, suffix in
          (("snp", ""), ("emulated", ".emulated"))}  # fmt: skip
LINK = "build/host-bundle/runtime/lib"


_KNOWN: dict[tuple[Any, ...], dict[str, Any]] = {}
_DESCRIBE = Contents.describe


def _described(contents: Contents, name: str, size: int | None = None) -> dict[str, Any]:
    """What Contents.describe returns. It is asked again for a file with another inode, size or time of change."""
    try:
        found = os.lstat(contents.root / name)
    except OSError:
        return _DESCRIBE(contents, name, size)
    key = (contents.root, name, size, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if key not in _KNOWN:
        _KNOWN[key] = _DESCRIBE(contents, name, size)
    return dict(_KNOWN[key])


@dataclass(frozen=True)
class Released:
    """A copy of the build with its signed manifest, and the key that signed it."""

    built: Built
    key: Path
    public: Path

    @property
    def project(self) -> Path:
        return self.built.project

    @property
    def manifest(self) -> Path:
        return self.project / "build" / "manifest.json"

    @property
    def signature(self) -> Path:
        return self.project / "build" / "manifest.json.sig"

    def document(self) -> Any:
        return json.loads(self.manifest.read_bytes())

    def refusal(self, public: Path | None = None) -> str:
        """The error message of the check; empty if it accepts. Files that have not changed are not hashed again."""
        with mock.patch.object(Contents, "describe", _described):
            try:
                verify_manifest(manifest=self.manifest, public_key=public, project=self.project)
            except UserError as error:
                return error.message
        return ""

    def resign(self, document: dict[str, Any]) -> None:
        """Write a manifest and sign it with the owner's key, which no attacker can."""
        from sevsnp.keys.signature import load_signing_key, sign

        document.pop("type", None)
        replace(self.manifest, render_manifest(document))
        replace(self.signature, sign(load_signing_key(self.key), self.manifest.read_bytes()))

    @contextlib.contextmanager
    def kept(self, *paths: Path) -> Iterator[None]:
        """Restore ``paths`` at the end, and remove those that did not exist."""
        with tempfile.TemporaryDirectory(dir=self.project.parent) as aside:
            places = {path: Path(aside, str(number)) for number, path in enumerate(paths) if os.path.lexists(path)}
            for path, place in places.items():
                os.link(path, place, follow_symlinks=False)
            try:
                yield
            finally:
                for path in paths:
                    path.unlink(missing_ok=True)
                for path, place in places.items():
                    place.rename(path)


def replace(path: Path, data: bytes) -> None:
    """Write ``path`` as a new file: other tests use the old one, which belongs to the build."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def release(built: Built, directory: Path) -> Released:
    """A copy of the build, with a manifest that a new key has signed."""
    copy = copy_built(built, directory / "project")
    key = make_key(directory)
    copy.doit("manifest", f"MANIFEST_KEY={key}")
    return Released(copy, key, public_half(key))


def flipped(path: Path) -> None:
    """Change one bit in the middle and keep the size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    replace(path, bytes(data))
