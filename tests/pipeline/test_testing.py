# SPDX-License-Identifier: Apache-2.0
"""`test` and `lint`: which tests and tools run, and how failures are reported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, copy_project


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, in which mypy has little to look at."""
    target = tmp_path_factory.mktemp("clone") / "project"
    copy_project(target)
    pyproject = target / "pyproject.toml"
    text, count = re.subn(r"^files = .*$", 'files = ["sevsnp/errors.py"]', pyproject.read_text(), flags=re.MULTILINE)
    assert count == 1
    pyproject.write_text(text)
    return target


def doit(clone: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "doit", *words],
        cwd=clone,
        env={name: text for name, text in os.environ.items() if not name.startswith("PYTEST")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def test_the_tests_of_a_path(clone: Path) -> None:
    code, said = doit(
        clone, "test", "tests/unit/system/test_named.py::test_a_name_is_loaded", "tests/unit/system/test_yaml_loader.py"
    )
    assert code == 0, said
    (clone / "tests" / "unit" / "test_wrong.py").write_text("def test_wrong() -> None:\n    assert 1 == 2\n")
    code, said = doit(clone, "test", "--fast", "tests/unit/test_wrong.py")
    (clone / "tests" / "unit" / "test_wrong.py").unlink()
    assert code == 1 and "1 failed" in said and "✗ test: pytest: exit code 1" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tests/nonsuch.py",), "✗ test: tests/nonsuch.py: no such file or directory"),
        (("--full", "--fast"), "✗ test: test: found --full and --fast, expected one of them"),
    ],
)
def test_bad_arguments_of_test_are_refused(clone: Path, words: tuple[str, ...], said: str) -> None:
    code, shown = doit(clone, "test", *words)
    assert code == 1 and said in shown and "passed" not in shown


@pytest.mark.full
def test_coverage_has_a_floor(clone: Path) -> None:
    """One file's tests reach less of the library than the floor."""
    code, said = doit(clone, "test", "--coverage", "tests/unit/system/test_named.py")
    assert code == 1 and "1 failed" not in said and "Required test coverage of" in said
    pyproject = clone / "pyproject.toml"
    floor = pyproject.read_text()
    pyproject.write_text(re.sub(r"^fail_under = \d+$", "fail_under = 1", floor, flags=re.MULTILINE))
    code, said = doit(clone, "test", "--coverage", "tests/unit/system/test_named.py")
    pyproject.write_text(floor)
    assert code == 0 and "TOTAL" in said


def collected(*words: str) -> set[str]:
    argv = [sys.executable, "-m", "pytest", "-n0", "-q", "--collect-only", "-p", "no:cacheprovider", *words]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=300)
    return {line for line in done.stdout.splitlines() if "::" in line}


def test_fast_leaves_out_only_tests_that_need_a_build() -> None:
    files = [
        f"tests/unit/{name}.py" for name in ("images/test_foreign", "initramfs/test_leavings", "archives/test_cpio")
    ]
    all_of_them, fast = collected(*files), collected("--fast", *files)
    left_out = {name.partition("::")[0].removeprefix("tests/unit/") for name in all_of_them - fast}
    assert fast < all_of_them and left_out == {"images/test_foreign.py", "initramfs/test_leavings.py"}
    assert any("test_foreign" in name for name in fast)


def test_lint_runs_all_its_tools_and_names_those_that_found_problems(clone: Path) -> None:
    code, said = doit(clone, "lint")
    assert code == 0, said
    wrong = clone / "sevsnp" / "wrong.py"
    wrong.write_text("import os\nx  = 1\n")
    errors = clone / "sevsnp" / "errors.py"
    errors.write_text(errors.read_text() + '\nnumber: int = "text"\n')
    code, said = doit(clone, "lint")
    assert code == 1
    assert "✗ lint: ruff check, ruff format --check, mypy, lint-imports found problems" in said
    assert "F401" in said and "would be reformatted" in said and "Incompatible types" in said
    assert "wrong" in said.partition("lint-imports")[2], "a module that is in no room"
