# SPDX-License-Identifier: Apache-2.0
"""The recipe of an artefact: the sources that its digest covers, and the edits that change it."""

import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.store.recipe import reached_sources, recipe_digest

PROJECT = Path(__file__).resolve().parents[3]
FILES = {
    "__init__.py": "",
    "a/__init__.py": "",
    "a/top.py": "from sevsnp.a import middle\nfrom sevsnp.b.deep import value\n",
    "a/middle.py": "def f():\n    import sevsnp.c\n",
    "a/unused.py": "",
    "b/__init__.py": "from sevsnp import d\n",
    "b/deep.py": "value = 1\nTEXT = 'sevsnp.named'\nPROSE = 'about sevsnp.unnamed, a module'\n",
    "c.py": "import os, json\n",
    "d.py": "",
    "named.py": "",
    "unnamed.py": "",
    "circle.py": "import sevsnp.e\n",
    "e.py": "from sevsnp.circle import x\nimport sevsnp.nonsuch\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "sevsnp" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sevsnp" / name).write_text(text)
    for room in ("store", "system"):
        (tmp_path / "sevsnp" / room).mkdir()
        (tmp_path / "sevsnp" / room / "__init__.py").write_text("")
    for name in (
        "store/recipe.py",
        "store/session.py",
        "store/digests.py",
        "store/entries.py",
        "system/files.py",
        "errors.py",
    ):
        (tmp_path / "sevsnp" / name).write_text((PROJECT / "sevsnp" / name).read_text())
    return tmp_path


def ask(package: Path, expression: str) -> str:
    """Evaluate in a process of its own, where ``sevsnp`` is the stand-in package."""
    script = f"from sevsnp.store.recipe import *; print({expression})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=package, check=True, capture_output=True, text=True, env={}
    )
    return done.stdout.strip()


def reached(package: Path, module: str) -> set[str]:
    return set(ask(package, f"*reached_sources({module!r})").split())


def test_nested_named_and_packages_own_imports_are_reached(package: Path) -> None:
    assert reached(package, "sevsnp.a.top") == {
        "sevsnp", "sevsnp.a", "sevsnp.a.top", "sevsnp.a.middle", "sevsnp.b", "sevsnp.b.deep", "sevsnp.c", "sevsnp.d",
        "sevsnp.named",
    }  # fmt: skip


def test_modules_that_import_each_other_end(package: Path) -> None:
    assert reached(package, "sevsnp.circle") == {"sevsnp", "sevsnp.circle", "sevsnp.e"}


def test_the_digest_changes_with_what_is_reached_and_with_nothing_else(package: Path) -> None:
    digest = "recipe_digest('sevsnp.a.top')"
    before = ask(package, digest)
    assert ask(package, digest) == before
    for name in FILES:
        path = package / "sevsnp" / name
        text = path.read_text()
        path.write_text(f"{text}\n# a remark\n")
        changed = ask(package, digest) != before
        path.write_text(text)
        assert changed == (name not in ("a/unused.py", "unnamed.py", "circle.py", "e.py")), name
    assert ask(package, digest) == before


def test_neither_directory_nor_time_matters(package: Path, tmp_path: Path) -> None:
    before = ask(package, "recipe_digest('sevsnp.a.top')")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (package / "sevsnp").rename(moved / "sevsnp")
    for path in moved.rglob("*.py"):
        path.touch()
    assert ask(moved, "recipe_digest('sevsnp.a.top')") == before


def test_the_recipes_of_this_project() -> None:
    layers, bundle = (set(reached_sources(name)) for name in ("sevsnp.images.initramfs", "sevsnp.release.bundle"))
    assert {"sevsnp.archives.cpio", "sevsnp.images.kernel_modules", "sevsnp.system.command", "sevsnp.errors"} <= layers
    assert not {"sevsnp.qemu.process", "sevsnp.images.filesystem"} & layers
    # What a bundle carries along is only named there, to be started on the host.
    assert {"sevsnp.host.bundle_run", "sevsnp.qemu.qmp", "sevsnp.emulation.service"} <= bundle
    assert recipe_digest("sevsnp.release.bundle") != recipe_digest("sevsnp.images.initramfs")
