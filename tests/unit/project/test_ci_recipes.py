# SPDX-License-Identifier: Apache-2.0
"""The recipes for continuous integration: their permissions, and the tasks and settings that they name."""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
GITHUB, GITLAB = PROJECT / ".github/workflows/build.yml", PROJECT / ".gitlab-ci.yml"
PREPARE = PROJECT / ".github/actions/prepare/action.yml"
ON_MAIN = "github.event_name == 'push' && github.ref == 'refs/heads/main'"
SHORT_OF_A_DAY = 6 * 60


class _Loader(yaml.SafeLoader):
    """YAML as GitLab writes it: with !reference."""


def _reference(loader: yaml.Loader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_Loader.add_constructor("!reference", _reference)


def read(path: Path) -> dict[str, Any]:
    document = yaml.load(path.read_text(), _Loader)
    assert isinstance(document, dict)
    # YAML 1.1 reads GitHub's "on" as a truth value.
    return {"on" if key is True else key: value for key, value in document.items()}


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def prepared() -> list[dict[str, Any]]:
    """The steps that every job begins with."""
    found = yaml.safe_load(PREPARE.read_text())["runs"]["steps"]
    assert isinstance(found, list)
    return found


def github_faults(workflow: dict[str, Any]) -> set[str]:
    """What the workflow must not do."""
    found = set()
    if set(workflow["on"]) - {"push", "pull_request", "schedule"}:
        found.add("runs on something else")
    if workflow["on"]["push"] != {"branches": ["main"]}:
        found.add("runs for other branches")
    if workflow.get("permissions") != {"contents": "read"} or any(
        "permissions" in j for j in workflow["jobs"].values()
    ):
        found.add("has more than read permission")
    if not all(0 < job.get("timeout-minutes", 0) <= SHORT_OF_A_DAY for job in workflow["jobs"].values()):
        found.add("no time-out")
    if "group" not in workflow.get("concurrency", {}):
        found.add("no concurrency")
    for step in steps(workflow):
        if "uses" in step and not re.fullmatch(
            r"actions/[a-z/-]+@[0-9a-f]{40}|[.]/[.]github/actions/prepare", step["uses"]
        ):
            found.add("an action that is not pinned")
        if step.get("uses", "").startswith("actions/checkout@") and step["with"]["persist-credentials"] is not False:
            found.add("the checkout keeps the token")
        secret = "secrets." in str({key: value for key, value in step.items() if key != "if"})
        writes = step.get("uses", "").partition("@")[0] in ("actions/cache/save", "actions/cache")
        if (secret or writes) and not step.get("if", "").startswith(ON_MAIN):
            found.add("secrets or the cache's writing outside of main")
        # An expression inside a script is text that whoever named the branch has written.
        if "${{" in step.get("run", ""):
            found.add("an expression in a script")
    for where in (workflow, *workflow["jobs"].values()):
        if "secrets." in str(where.get("env", "")):
            found.add("secrets outside of main")
        if where.get("env", {}).get("CACHE_MODE", "pull") not in ("pull", f"${{{{ {ON_MAIN} && 'push' || 'pull' }}}}"):
            found.add("the shared cache's writing outside of main")
    return found


def test_github() -> None:
    workflow = read(GITHUB)
    assert github_faults(workflow) == set()
    assert github_faults({**workflow, "jobs": {"prepare": {"timeout-minutes": 1, "steps": prepared()}}}) == set()
    (restore,) = [step for step in prepared() if step.get("uses", "").startswith("actions/cache/restore@")]
    (save,) = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/cache/save@")]
    assert restore["with"]["key"] == save["with"]["key"] and restore["with"]["path"] == save["with"]["path"]
    assert "hashFiles('packages.lock')" in restore["with"]["key"]
    for fallback in restore["with"]["restore-keys"].splitlines():
        assert fallback.startswith("artefacts-")


def test_every_directory_of_tests_is_in_one_of_github_s_jobs() -> None:
    parts = read(GITHUB)["jobs"]["test"]["strategy"]["matrix"]["include"]
    paths = [path for part in parts for path in part["paths"].split() if not path.startswith("-")]
    assert sorted(paths) == sorted(
        {"/".join(path.relative_to(PROJECT).parts[:2]) for path in PROJECT.glob("tests/*/**/test_*.py")}
    )


def change(place: list[str], value: Any) -> Any:
    def applied(workflow: dict[str, Any]) -> dict[str, Any]:
        changed: Any = copy.deepcopy(workflow)
        node = changed
        for name in place[:-1]:
            node = node[int(name)] if isinstance(node, list) else node[name]
        if value is None:
            del node[place[-1]]
        else:
            node[place[-1]] = value
        return dict(changed)

    return applied


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (["on", "pull_request_target"], {}, "runs on something else"),
        (["on", "push"], {"branches": ["*"]}, "runs for other branches"),
        (["permissions"], {"contents": "write"}, "has more than read permission"),
        (["permissions"], None, "has more than read permission"),
        (["jobs", "build", "permissions"], {"packages": "write"}, "has more than read permission"),
        (["jobs", "build", "timeout-minutes"], None, "no time-out"),
        (["concurrency"], {}, "no concurrency"),
        (["jobs", "build", "steps", "0", "uses"], "actions/checkout@v5", "an action that is not pinned"),
        (["jobs", "build", "steps", "0", "with", "persist-credentials"], True, "the checkout keeps the token"),
        (["jobs", "build", "steps", "2", "if"], "always()", "secrets or the cache's writing outside of main"),
        (["jobs", "build", "steps", "4", "if"], None, "secrets or the cache's writing outside of main"),
        (["jobs", "build", "env", "CACHE_MODE"], "push", "the shared cache's writing outside of main"),
        (["jobs", "build", "env", "X"], "${{ secrets.X }}", "secrets outside of main"),
        (["jobs", "build", "steps", "3", "run"], "echo ${{ github.head_ref }}", "an expression in a script"),
    ],
)
def test_the_faults_are_found(place: list[str], value: Any, fault: str) -> None:
    assert github_faults(change(place, value)(read(GITHUB))) == {fault}


def jobs(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """GitLab's jobs, each with what it extends."""
    every = {
        name: job for name, job in document.items() if isinstance(job, dict) and ("script" in job or "extends" in job)
    }
    return {
        name: {**every.get(job.get("extends", ""), {}), **job}
        for name, job in every.items()
        if not name.startswith(".")
    }


def writes(job: dict[str, Any]) -> bool:
    cached = any(entry.get("policy", "pull-push") != "pull" for entry in job.get("cache", []))
    mode = job.get("variables", {}).get("CACHE_MODE", "pull") != "pull"
    return cached or mode or "CACHE_LOGIN" in str(job.get("before_script", "")) + str(job["script"])


def test_gitlab() -> None:
    document = read(GITLAB)
    assert document["variables"]["CACHE_MODE"] == "pull"
    found = jobs(document)
    assert {name for name, job in found.items() if writes(job)} == {"build-main"}
    (rule,) = found["build-main"]["rules"]
    assert rule == {"if": '$CI_PIPELINE_SOURCE == "push" && $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH'}
    for job in found.values():
        assert job["rules"] and re.fullmatch(r"\d hours", job["timeout"])
        assert job["cache"][0]["key"]["files"] == ["packages.lock"]
        assert job["cache"][0]["fallback_keys"] == [found["build-main"]["cache"][1]["key"]]


def test_gitlab_s_writers_are_found() -> None:
    job = jobs(read(GITLAB))["build"]
    assert not writes(job)
    assert writes({**job, "cache": [{**job["cache"][0], "policy": "pull-push"}]})
    assert writes({**job, "variables": {"CACHE_MODE": "push"}})
    assert writes({**job, "script": ['cp "$CACHE_LOGIN" x']})


def named_tasks(text: str) -> set[str]:
    """What is asked of ./doitw, without options and their values, and a shell's variables."""
    found: set[str] = set()
    for line in re.findall(r"\./doitw +([^\n`]*)", text):
        found |= set(re.sub(r"(?<!\S)(-\S+( \d+)?|[$]\S+)", "", line).split())
    return found


def test_the_tasks_that_recipes_and_documentation_name_exist() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "doit", "list", "--quiet"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    tasks = set(listed.stdout.split())
    scripts = [step.get("run", "") for step in (*prepared(), *steps(read(GITHUB)))]
    for job in jobs(read(GITLAB)).values():
        scripts += flat([job["before_script"], job["script"]])
    named = named_tasks("\n".join(scripts))
    assert {"install_dependencies", "host_bundle", "test"} <= named <= tasks
    assert named_tasks((PROJECT / "docs" / "ci.md").read_text()) <= tasks
    assert named_tasks("./doitw -n 2 nonsuch test --full") == {"nonsuch", "test"}


def flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for item in value:
            yield from flat(item)


def test_the_recipes_name_no_host() -> None:
    for path in (GITHUB, PREPARE, GITLAB, PROJECT / "docs" / "ci.md"):
        assert re.findall(r"\b[a-z0-9-]+\.(?:io|com|org|net|dev)\b", path.read_text()) == []


def test_the_settings_that_recipes_use_exist() -> None:
    from sevsnp.settings.table import SETTINGS

    used = {"SEVSNP_CACHE", "CACHE", "CACHE_MODE", "CACHE_DIR"}
    assert all(name in GITHUB.read_text() + PREPARE.read_text() and name in GITLAB.read_text() for name in used)
    assert used <= {setting.name for setting in SETTINGS}
