# SPDX-License-Identifier: Apache-2.0
"""The work of a relying party: the wheel in an empty environment, and a genuine public report verified there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.evidence import real_data
from tests.support.waiting import NET
from tests.unit.attestation.test_ear import pem, read
from tests.unit.attestation.test_real_reports import REAL, real_config
from tests.unit.project.test_house_rules import project_files, relative

pytestmark = pytest.mark.full  # pip fetches packages

# "cryptography and little else", with what these need themselves.
ALONE = {"openend2e-sevsnp", "cryptography", "cffi", "pycparser", "requests", "urllib3", "idna", "certifi", "pyjwt",
         "charset-normalizer", "jinja2", "markupsafe", "pip", "setuptools"}  # fmt: skip
THREE_LINES = """\
from sevsnp.attestation import Policy, verify
policy = Policy.of("legacy-milan", measurement=MEASUREMENT, report_data=REPORT_DATA, minimum_tcb=FLOOR)
verdict = verify(REPORT, policy, certificates=CERTIFICATES, at=AT)
"""
SCRIPT = """\
import sys
from datetime import UTC, datetime
from pathlib import Path
REPORT, *CERTIFICATES = (Path(name).read_bytes() for name in sys.argv[3:])
MEASUREMENT, REPORT_DATA = sys.argv[1:3]
FLOOR = {{"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}}
AT = datetime(2026, 6, 1, tzinfo=UTC)
{lines}
print(verdict.report.product, verdict.appraisal.accepted)
"""


def run(*argv: object, **more: object) -> "subprocess.CompletedProcess[str]":
    words = [str(word) for word in argv]
    # Nothing of this process's environment is to be found in the empty one.
    more.setdefault("env", {name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    return subprocess.run(words, capture_output=True, text=True, timeout=NET, check=False, **more)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the project's wheel, which pip made."""
    place = tmp_path_factory.mktemp("relying-party")
    source = place / "source"
    for path in project_files():
        name = relative(path)
        if name.startswith(("sevsnp/", "templates/")) or name in ("pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(path.read_bytes())
    assert run(sys.executable, "-m", "venv", place / "venv").returncode == 0
    python = place / "venv" / "bin" / "python"
    made = run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, source)
    if made.returncode:
        pytest.skip(f"pip cannot make a wheel here: {made.stderr[-300:]}")
    (wheel,) = place.glob("*.whl")
    installed = run(python, "-m", "pip", "install", "-q", wheel)
    if installed.returncode:
        pytest.skip(f"pip cannot fetch packages here: {installed.stderr[-300:]}")
    return place / "venv" / "bin"


def words(tmp_path: Path) -> tuple[list[str], list[Path], dict[str, str]]:
    one, wanted, report_data = real_config(*REAL[0][:4])
    (tmp_path / "report").write_bytes(one.report)
    chain = [real_data(name) for name in ("milan-v2/vcek.der", "amd-chains/ask_ark_milan.pem")]
    stated = [wanted.require_reference().launch_digest.hex(), report_data.hex()]
    return stated, [tmp_path / "report", *chain], {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)}


def test_only_few_other_packages_are_installed(empty: Path) -> None:
    found = json.loads(run(empty / "python", "-m", "pip", "list", "--format=json").stdout)
    assert {one["name"].lower() for one in found} <= ALONE
    assert run(empty / "python", "-c", "import doit").returncode != 0  # control
    assert run(empty / "python", "-m", "pip", "check").returncode == 0


def test_three_lines_of_python(empty: Path, tmp_path: Path) -> None:
    stated, files, environment = words(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(lines=THREE_LINES))
    done = run(empty / "python", script, *stated, *files, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and done.stdout == "Milan True\n", done.stderr
    other = run(empty / "python", script, "ab" * 48, stated[1], *files, cwd=tmp_path, env=environment)
    assert other.returncode != 0 and f"Refused: found {stated[0]}" in other.stderr


def test_the_types_of_the_library_are_checked_by_mypy(empty: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    checked = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--python-executable={empty / 'python'}"]
    for lines, words_found in ((THREE_LINES, "Success"), (THREE_LINES.replace("at=AT", "at='now'"), 'argument "at"')):
        script.write_text(SCRIPT.format(lines=lines))
        done = run(*checked, script, cwd=tmp_path)
        assert words_found.lower() in done.stdout.lower(), done.stdout


def test_the_commands(empty: Path, tmp_path: Path) -> None:
    (digest, report_data), (report, *chain), environment = words(tmp_path)
    line = [
        "--input",
        report,
        "--report-data",
        report_data,
        "--at",
        "2026-06-01",
        "--offline",
        "--policy",
        "legacy-milan",
    ]
    line += [word for path in chain for word in ("--certificates", path)]
    line += ["--min-tcb", "bootloader:3,snp:8,microcode:115", "--measurement"]
    page = tmp_path / "page.html"
    done = run(empty / "verify_report", *line, digest, "--html", page, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "Accepted" in page.read_text(), done.stderr
    assert run(empty / "verify_report", *line, "ab" * 48, cwd=tmp_path, env=environment).returncode == 2
    key = ec.generate_private_key(ec.SECP384R1())
    pem(tmp_path / "key.pem", key)
    signed = ["--ear", tmp_path / "result.jwt", "--ear-key", tmp_path / "key.pem"]
    done = run(empty / "verify_report", *line, digest, *signed, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    _, claims = read((tmp_path / "result.jwt").read_text().strip(), key, "ES384")  # by another library than its own
    assert claims["submods"]["snp"]["ear_attester_claims"]["measurement"] == digest
    # Nothing that the pipeline alone has is missing where AMD's service is asked.
    asked = ["--input", report, "--kds", "http://127.0.0.1:9", "--timeout", "1"]
    done = run(empty / "inspect_report", *asked, cwd=tmp_path, env=environment)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    for name in (
        "inspect_report",
        "measure",
        "idblock-generator",
        "sev-feature-info",
        "verify_report_emulated",
        "tcb-floors",
    ):
        assert run(empty / name, "--help", cwd=tmp_path, env=environment).returncode == 0, name
