# SPDX-License-Identifier: Apache-2.0
"""The recipe of an artefact: the sources that its digest covers, and the edits that change the digest."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.store.recipe import _code, reached_sources, recipe_digest
from tests.support.replacing import replaced_once

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
        "store/sparse_digest.py",
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


def test_nested_imports_named_functions_and_package_imports_are_followed(package: Path) -> None:
    assert reached(package, "sevsnp.a.top") == {
        "sevsnp", "sevsnp.a", "sevsnp.a.top", "sevsnp.a.middle", "sevsnp.b", "sevsnp.b.deep", "sevsnp.c", "sevsnp.d",
        "sevsnp.named",
    }  # fmt: skip


def test_circular_imports_are_followed_once(package: Path) -> None:
    assert reached(package, "sevsnp.circle") == {"sevsnp", "sevsnp.circle", "sevsnp.e"}


def test_only_followed_modules_change_the_digest(package: Path) -> None:
    digest = "recipe_digest('sevsnp.a.top')"
    before = ask(package, digest)
    assert ask(package, digest) == before
    for name in FILES:
        path = package / "sevsnp" / name
        text = path.read_text()
        path.write_text(f"{text}\nMORE = 1\n")
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
    layers, tools = (set(reached_sources(name)) for name in ("sevsnp.images.initramfs", "sevsnp.commands.tools"))
    assert {"sevsnp.archives.cpio", "sevsnp.images.kernel_modules", "sevsnp.system.command", "sevsnp.errors"} <= layers
    assert not {"sevsnp.qemu.process", "sevsnp.images.filesystem"} & layers
    # What a command starts is only named there.
    assert {"sevsnp.commands.verify_report", "sevsnp.attestation.appraisal"} <= tools
    assert recipe_digest("sevsnp.commands.tools") != recipe_digest("sevsnp.images.initramfs")


SOURCE = '''# SPDX-License-Identifier: Apache-2.0
"""A module."""

import os  # for all


class Kept:
    """A class."""

    def name(self, words: list[str]) -> str:
        """A function,

        in two paragraphs.
        """
        if words:
            return "a # b"

        return f"{os.sep}, {words!r:>{len('x')}} und so fort, „{'ä'}“"


TEXT = """\\
# kept

  end
"""
'''
# Of 3.11, 3.12 and 3.13, which have other words and other trees: two versions of Python share what they make.
DIGEST = "05db8fb57e461e715ff9201135db35aba9f5daa0e70c3686a195ca8360ac1bcf"

SAME = {
    "a comment more": ("import os  # for all", "# More.\n\nimport os"),
    "another licence": ("Apache-2.0", "MIT"),
    "another module docstring": ('"""A module."""', '"""Another\n\nmodule.\n"""'),
    "no module docstring": ('"""A module."""', ""),
    "another class docstring": ("A class.", "Another."),
    "another function docstring": ("in two paragraphs", "in three"),
    "no function docstring": ('        """A function,\n\n        in two paragraphs.\n        """\n', ""),
    "lines more and less": ('a # b"\n\n', 'a # b"\n\n\n\n'),
    "an expression over two lines": ("name(self, words: list[str])", "name(\n    self, words: list[str]\n  )"),
    "deeper": ("            return", "              return"),
}
OTHER = {
    "a statement more": ("import os", "import os, re"),
    "a comment in a text": ("# kept", "# changed"),
    "an empty line less in a text": ("# kept\n\n", "# kept\n"),
    "a space in a text": ("  end", " end"),
    "a space behind a text": ("# kept", "# kept "),
    "a comment in a string": ("a # b", "a # c"),
    "an f-string": ("und so fort", "etc."),
    "a space in an f-string": (", {words", ",{words"),
    "in an f-string's braces": ("os.sep}", "os.name}"),
    "a statement for a docstring": ('"""A class."""', 'x = """A class."""'),
    "an f-string for a docstring": ('"""A class."""', 'f"""{print()}"""'),
    "out of its block": ("\n        return f", "\n            return f"),
    "words joined": ("import os", "importos"),
}


def code_of(text: str) -> list[str]:
    return list(_code(text.encode()))


def edited(old: str, new: str) -> str:
    return replaced_once(SOURCE, old, new)


@pytest.mark.parametrize("name", SAME)
def test_comments_docstrings_and_layout_do_not_change_the_digest(name: str) -> None:
    text = edited(*SAME[name])
    compile(text, "text", "exec")
    assert text != SOURCE
    assert code_of(text) == code_of(SOURCE)


@pytest.mark.parametrize("name", OTHER)
def test_every_other_edit_changes_the_digest(name: str) -> None:
    assert code_of(edited(*OTHER[name])) != code_of(SOURCE)


def test_every_version_of_python_gives_the_same_digest() -> None:
    assert hashlib.sha256("\0".join(code_of(SOURCE)).encode()).hexdigest() == DIGEST


def test_every_byte_of_an_invalid_source_changes_the_digest(package: Path) -> None:
    path, digest = package / "sevsnp" / "d.py", "recipe_digest('sevsnp.a.top')"
    found = set()
    for text in ("def", "def # a remark", "x = (", "\0", "x = 1\n# \0", "# \xff"):
        path.write_bytes(text.encode("latin-1"))
        found.add(ask(package, digest))
    assert len(found) == 6


def test_no_module_of_the_library_reads_docstrings_or_line_numbers() -> None:
    looks = re.compile(r"\b(__doc__|getsource|getdoc|getcomments|lineno|currentframe)\b")
    found = [path for path in (PROJECT / "sevsnp").rglob("*.py") if looks.search(path.read_text())]
    assert found == []
