# SPDX-License-Identifier: Apache-2.0
"""The files that pip installs: every module and template, and commands that work outside of any checkout."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sevsnp.vm_config.config import render_vm_config
from tests.support.evidence import REPORT_DATA, ROOT, evidence, psp, root
from tests.support.evidence import config as vm_config
from tests.support.waiting import NET
from tests.unit.project.test_house_rules import project_files, relative

# As the commands that pip writes; then says which other packages were loaded for it, and from where ours came.
CALL = """
import json, sys
before = set(sys.modules)
from {module} import main
code = main(sys.argv[1:])
loaded = {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names) - before
import sevsnp
print(json.dumps([sorted(loaded), sevsnp.__file__]), file=sys.stderr)
sys.exit(code)
"""
NEEDED = {"_cffi_backend", "_openssl", "cryptography", "sevsnp"}  # the first two are loaded by the third
FOR_THE_PAGE = {"jinja2", "markupsafe"}


def build(directory: Path, pyproject: str) -> Path:
    """Copy the sources to ``directory`` and let setuptools collect there what goes into a wheel."""
    if not importlib.util.find_spec("setuptools"):
        pytest.skip("no setuptools in this environment: venv brings it along up to Python 3.11 only")
    source, library = directory / "source", directory / "library"
    for path in project_files():
        if relative(path).startswith(("sevsnp/", "templates/")):
            target = source / relative(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for name in ("README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    # A build takes setuptools 77, which knows these two; a venv's own may be older.
    (source / "pyproject.toml").write_text(re.sub(r"^license.*\n", "", pyproject, flags=re.MULTILINE))
    argv = [sys.executable, "-c", "from setuptools import setup; setup()", "build_py", "--build-lib", str(library)]
    subprocess.run(argv, cwd=source, check=True, capture_output=True, timeout=NET)
    shutil.rmtree(source)
    return library


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("installed"), (ROOT / "pyproject.toml").read_text())


def call(library: Path, module: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-c", CALL.format(module=module), *words], cwd=library.parent,
        env={**os.environ, "PYTHONPATH": str(library), "XDG_CACHE_HOME": str(library.parent / "cache")},
        capture_output=True, text=True, timeout=NET, check=False,
    )  # fmt: skip


def words(directory: Path) -> list[str]:
    (directory / "report").write_bytes(evidence().report)
    (directory / "table").write_bytes(psp().certificate_table())
    config = dataclasses.replace(vm_config(), source=directory / "vm.toml")
    config.source.write_text(render_vm_config(config))
    return [
        *("--input", f"{directory}/report", "--certificates", f"{directory}/table"),
        *("--vm_definition", str(config.source), "--report-data", REPORT_DATA.hex()),
    ]


def test_everything_is_installed(installed: Path) -> None:
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    ours = {relative(path) for path in project_files() if relative(path).startswith("sevsnp/")}
    templates = {f"sevsnp/{relative(path)}" for path in project_files() if relative(path).startswith("templates/")}
    assert "sevsnp/templates/verdict.html.j2" in templates
    assert found == ours | templates, "the list of packages in pyproject.toml"


def test_an_installed_verifier_writes_its_page(installed: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    trusted = ["--root", str(root())]
    for module, more, code, word in (
        ("sevsnp.commands.verify_report_emulated", trusted, 10, "<h1>Accepted as emulated</h1>"),
        ("sevsnp.commands.verify_report", ["--offline"], 2, "<h1>Refused</h1>"),
    ):
        done = call(installed, module, *words(tmp_path), *more, "--html", str(page))
        assert done.returncode == code, done.stderr
        assert word in page.read_text()
        loaded, place = json.loads(done.stderr.splitlines()[-1])
        assert Path(place).is_relative_to(installed)
        assert set(loaded) == NEEDED | FOR_THE_PAGE
        # Without the page not even the template engine; doit, rich and plumbum are the pipeline's.
        for shown in ([], ["--json"]):
            done = call(installed, module, *words(tmp_path), *more, *shown)
            assert done.returncode == code
            assert set(json.loads(done.stderr.splitlines()[-1])[0]) == NEEDED


def test_control_without_the_mapping_there_is_no_page(tmp_path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lines = [line for line in text.splitlines() if "sevsnp.templates" not in line]
    assert len(lines) == len(text.splitlines()) - 3
    page = tmp_path / "page.html"
    done = call(
        build(tmp_path, "\n".join(lines)),
        "sevsnp.commands.verify_report",
        *words(tmp_path),
        "--offline",
        "--html",
        str(page),
    )
    assert done.returncode not in (0, 2) and not page.exists()
    assert call(tmp_path / "library", "sevsnp.commands.verify_report", *words(tmp_path), "--offline").returncode == 2


def test_every_installed_command_starts(installed: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert "verify_report" in scripts
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        done = call(installed, module, "--help")
        assert function == "main" and done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: "), name
