# SPDX-License-Identifier: Apache-2.0
"""doit for its user: its list and help, the modules that it loads, a run without a task, and interrupted runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Built, copy_project
from tests.support.copies import copy_built, leavings, ran
from tests.support.processes import AS_NOBODY, ends_with_us
from tests.support.waiting import NET, cpu_seconds, wait_until

# Each costs more to load than all of doit, or is of ours and not needed for a list of tasks.
HEAVY = (
    "cryptography", "jinja2", "rich", "plumbum", "toml", "zstandard", "tarfile", "sevsnp.attestation",
    "sevsnp.qemu.process", "sevsnp.store.making",
)  # fmt: skip
CORE = (
    "install_dependencies", "packages", "unpack_kernel", "build_tools", "initramfs", "create_new_vm", "setup_verity",
    "run_sev_snp_verity", "attest_verity", "setup_luks", "run_sev_snp_luks", "attest_luks", "host_bundle",
    "host_bundle_luks", "e2e", "run_guest", "run_sev_snp", "run_sev_snp_direct_boot",
    "packages_lock", "test",
)  # fmt: skip


def doit(*words: str, cwd: Path = PROJECT, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "doit", *words],
        cwd=cwd,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with nothing built, in which nothing is lost."""
    target = tmp_path_factory.mktemp("clone") / "project"
    copy_project(target)
    return target


def test_the_list_has_every_task_in_the_order_of_use(clone: Path) -> None:
    done = doit("list", cwd=clone)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and done.stderr == ""
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert set(CORE) <= set(listed) and len(set(listed)) == len(listed)
    assert {"idblock", "cache_prune", "cache_verify", "lint", "graph"} <= set(listed)
    for way in (
        ("setup_verity", "run_sev_snp_verity", "attest_verity"),
        ("setup_luks", "run_sev_snp_luks", "attest_luks"),
    ):
        assert [name for name in listed if name in way] == list(way)
    assert listed[0] == "e2e"
    assert [line for line in lines if len(line) > 110] == []
    # One clear line each: it says something, and ends like the others.
    assert [line for line in lines if line.startswith("  ") and (len(line.split()) < 2 or line.endswith("."))] == []
    assert "Others" not in lines, "a task is in no group of tasks/listing.py"


NAMED = """
import inspect, json, re, sys
import dodo
from tasks.listing import GROUPS
makers = {name[5:]: inspect.cleandoc(maker.__doc__ or "") for name, maker in vars(dodo).items() if name[:5] == "task_"}
print(json.dumps([GROUPS, makers]))
"""


def test_every_listed_task_has_a_description_and_a_next_step(clone: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NAMED], cwd=clone, capture_output=True, text=True, check=True)
    groups, makers = json.loads(done.stdout)
    listed = [name for names in groups.values() for name in names]
    assert set(listed) <= set(makers) and len(set(listed)) == len(listed)
    for name in listed:
        _, *paragraphs = makers[name].split("\n\n")
        assert len(paragraphs) >= 2 and paragraphs[-1].startswith("Next: "), name
        assert set(re.findall(r"\./doitw (\w+)", makers[name])) <= set(makers), name


def test_list_and_help_create_no_files(clone: Path) -> None:
    for words in (("list",), ("help", "setup_verity"), ("list", "--all", "--private", "--deps")):
        assert doit(*words, cwd=clone).returncode == 0
    assert not (clone / "build").exists()


def test_loading_the_tasks_imports_no_slow_module(clone: Path) -> None:
    script = f"""
import sys
import dodo
from doit.loader import load_tasks
tasks = load_tasks(vars(dodo), allow_delayed=True)
assert len(tasks) > 20, tasks
print(*sorted(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_list_takes_little_more_time_than_doit_itself(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "dodo.py").write_text("def task_nothing():\n    return {'actions': None}\n")
    argv = [sys.executable, "-m", "doit", "list"]
    # Processor time, the best of some, in turns: what else the machine does must not decide.
    pairs = [[cpu_seconds(argv, directory) for directory in (clone, tmp_path)] for _ in range(5)]
    ours, empty = (min(column) for column in zip(*pairs, strict=True))
    assert ours < 4 * empty, f"doit list: {ours:.3f} s, with an empty dodo.py {empty:.3f} s"


def test_doit_without_a_task_prints_help_and_builds_nothing(clone: Path) -> None:
    done = doit(cwd=clone)
    assert done.returncode == 0
    for words in ("./doitw list", "./doitw e2e", "./doitw help TASK", "NAME=value"):
        assert words in done.stdout
    assert not (clone / "build").exists()


@pytest.mark.parametrize("task", ["setup_verity", "run_sev_snp_verity", "test"])
def test_help(clone: Path, task: str) -> None:
    done = doit("help", task, cwd=clone)
    assert done.returncode == 0 and task in done.stdout
    listed = doit("list", cwd=clone).stdout.splitlines()
    line = next(line for line in listed if line.startswith(f"  {task} "))
    assert line.split(maxsplit=1)[1] in done.stdout and "\nNext: " in done.stdout


def test_help_has_the_settings_that_a_task_reads(clone: Path) -> None:
    text = doit("help", "setup_verity", cwd=clone).stdout
    own, _, others = text.partition("Settings of the tasks that run before it:")
    for name in ("IMAGE", "CPUS", "POLICY", "MIN_TCB", "WRITABLE", "VERITY_FILESYSTEM"):
        assert f"  {name}=" in own
    assert "  MEMORY=" not in own and "  LUKS_FREE=" not in own
    assert re.search(r"^  packages +CACHE_DIR MIRROR SNAPSHOT_MIRROR$", others, re.MULTILINE)
    assert "  build/verity/verity.img\n" in others
    # A misspelt one in a task is no traceback.
    tools = clone / "tasks" / "tools.py"
    kept = tools.read_text()
    tools.write_text(
        kept.replace("str(Path.cwd())", 'settings().text("CPU")').replace("import BUILD", "import BUILD, settings")
    )
    try:
        done = doit("list", cwd=clone)
    finally:
        tools.write_text(kept)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "ERROR: task build_tools: there is no setting CPU\n  did you mean CPUS?\n"


def test_a_run_that_has_nothing_to_do_says_so(clone: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(clone, copy)
    words = {"SEVSNP_CACHE": str(tmp_path / "cache"), "CONFIG_DIR": str(tmp_path / "config")}
    said = "build_tools: nothing to do, all is up to date\n"
    assert said not in doit("build_tools", cwd=copy, **words).stdout
    assert doit("build_tools", cwd=copy, **words).stdout == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsuch"], "nonsuch: no such task"),
        (["Setup_verity"], "did you mean ./doitw setup_verity?"),
        (["setup_verity", "platform=snp"], "did you mean PLATFORM=?"),
        (["setup_verity", "PLATFORM=SNP"], "did you mean PLATFORM=snp?"),
        (["setup_verity", "NONSUCH=1"], "unknown setting NONSUCH=1"),
        (["list", "CPUS=many"], "CPUS=many (from the command line): expected a number of vCPUs"),
        (["setup_verity", "CPUS=2", "ACPI=off"], "ACPI=off: found CPUS=2, expected 1"),
        (["setup_verity", "--nonsuch"], "--nonsuch"),
    ],
)
def test_unknown_tasks_and_settings_are_refused_by_name(clone: Path, words: list[str], said: str) -> None:
    done = doit(*words, cwd=clone)
    assert done.returncode == 3
    assert said in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr
    assert not (clone / "build").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root leaves what another user may not remove")
def test_files_that_root_left_give_other_users_an_error_of_one_line(clone: Path, tmp_path: Path) -> None:
    """In a build and in a clean; the printed command repairs both."""
    copy = tmp_path / "project"
    shutil.copytree(clone, copy)
    words = {"SEVSNP_CACHE": str(copy / ".cache" / "a"), "CONFIG_DIR": str(copy / ".cache" / "b"), "HOME": str(copy)}

    def as_nobody(*argv: str) -> tuple[int, str]:
        done = subprocess.run(
            [*AS_NOBODY, sys.executable, "-B", "-m", "doit", *argv],
            cwd=copy, env={**os.environ, **words}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr

    assert doit("build_tools", cwd=copy, **words).returncode == 0
    remedy = f"run as root: cd {copy} && chown -R nobody: "
    for argv in (("build_tools",), ("clean",)):
        for path in (copy, *copy.glob("*"), *(copy / ".cache").rglob("*"), copy / ".cache"):
            if path.name != "build":
                os.chown(path, 65534, 65534, follow_symlinks=False)
        if argv == ("build_tools",):
            (copy / "initramfs" / "get_report.py").write_text("# another\n")
        code, said = as_nobody(*argv)
        assert code == 1 and "Permission denied" in said and "belongs to root, and this is nobody" in said, said
        assert remedy in said
    command = next(line for line in said.splitlines() if remedy in line).strip().removeprefix("run as root: ")
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    assert as_nobody("build_tools")[0] == 0 == as_nobody("clean")[0]
    assert not (copy / "build" / "bin" / "get_report").exists()


def test_a_bad_value_in_the_environment(clone: Path) -> None:
    done = doit("list", cwd=clone, POLICY="much")
    assert done.returncode == 3
    assert "POLICY=much (from the environment): expected an SNP guest policy" in done.stdout + done.stderr


def group(leader: int) -> list[str]:
    """The command lines of the processes that descend from ``leader``, itself included."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
        except OSError:
            continue
    found = {leader} & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in found]


SLEEPER = """
from pathlib import Path

from sevsnp.system.command import run


def make(*, source: Path, output: Path) -> None:
    output.write_text("half")
    # The grandchild, too, has to go; its number tells it from any other.
    run(["sh", "-c", "sleep 4711.{number} & wait"])


def quick(*, source: Path, output: Path) -> None:
    output.write_text(source.read_text())
"""
TASKS = """
from pathlib import Path

from tasks.graph import artefact

QUICK = Path("build/quick")


def task_quick():
    '''Quick'''
    return artefact("sevsnp.sleeper:quick", inputs={"source": Path("README.md")}, outputs={"output": QUICK})


def task_slow():
    '''Slow'''
    return artefact("sevsnp.sleeper:make", inputs={"source": QUICK}, outputs={"output": Path("build/slow")})
"""


def sleeping(number: int) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_text().replace("\0", " ")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"sleep 4711.{number}" in line and state != "Z":
            found.append(line)
    return found


@pytest.mark.parametrize("words", [[], ["-n", "2"]], ids=["one", "threads"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_interrupted_build(tmp_path: Path, number: signal.Signals, words: list[str]) -> None:
    project = tmp_path / "project"
    copy_project(project)
    mark = os.getpid() * 100 + number
    sleeper = project / "sevsnp" / "sleeper.py"
    sleeper.write_text(SLEEPER.format(number=mark))
    (project / "tasks" / "sleeper.py").write_text(TASKS)
    dodo = project / "dodo.py"
    dodo.write_text(dodo.read_text().replace('"setup",', '"sleeper", "setup",'))
    process = subprocess.Popen(
        ends_with_us(sys.executable, "-m", "doit", "run", *words, "slow"),
        cwd=project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: process.poll() is not None or len(sleeping(mark)) >= 2)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(number)
    output, _ = process.communicate(timeout=NET)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output and f"interrupted by {number.name}" in output
    assert sleeping(mark) == []
    assert not (project / "build" / "slow").exists() and (project / "build" / "quick").exists()
    assert leavings(project / "build") == []

    # The next run completes, and does not repeat what was finished.
    assert ran(doit("quick", cwd=project).stdout) == set()
    sleeper.write_text(SLEEPER.format(number=mark).replace("sleep 4711", "sleep 0; : 4711"))
    done = doit("slow", cwd=project)
    assert done.returncode == 0, done.stdout
    assert (project / "build" / "slow").read_text() == "half"


@pytest.mark.full
def test_an_interrupted_download_and_unpacking(built: Built, tmp_path: Path) -> None:
    """With the real packages, from the cache: the next run completes, whenever the run before it was interrupted."""
    copy = copy_built(built, tmp_path / "project")
    for seconds in (1.0, 2.5, 5.0):
        (copy.build / "snp-release" / "packages.json").unlink(missing_ok=True)
        process = subprocess.Popen(
            ends_with_us(sys.executable, "-m", "doit", "packages"),
            cwd=copy.project,
            env={**os.environ, "CONFIG_DIR": str(copy.config_dir)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        process.terminate()
        assert process.wait(NET) in (0, 143)
        assert group(process.pid) == []
        assert leavings(copy.build) == []
    copy.doit("packages")
    assert (copy.build / "snp-release" / "packages.json").exists()
