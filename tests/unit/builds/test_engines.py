# SPDX-License-Identifier: Apache-2.0
"""The choice of the container engine, and the messages if none works; with stand-ins that fail as real programs do."""

import resource
from pathlib import Path

import pytest

from sevsnp.builds import engines
from sevsnp.builds.engines import Engine, candidates, find_engine
from sevsnp.errors import UserError
from sevsnp.system import command

NO_DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
LIMITS = "Error: crun: setrlimit `RLIMIT_NOFILE`: Operation not permitted: OCI permission denied"
CGROUPS = "Error: OCI runtime error: crun: cgroups in hybrid mode not supported, drop all controllers from cgroupv2"
NO_MAPS = 'Error: cannot find newuidmap: exec: "newuidmap": executable file not found in $PATH'


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH that has no engine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(command, "_SBIN", ())
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def fails(said: str, unless: str = "") -> str:
    good = f"case \"$*\" in *'{unless}'*) exit 0 ;; esac\n" if unless else ""
    # Looking at the probe's image is no proof: only `run` is.
    return f"{good}case \"$*\" in *image*) exit 0 ;; esac\necho '{said}' >&2; exit 125"


def refusal() -> UserError:
    with pytest.raises(UserError, match="no container engine runs here") as caught:
        find_engine()
    return caught.value


def test_nothing_is_installed(programs: Path) -> None:
    error = refusal()
    assert error.message.endswith("docker: not installed; podman: not installed")
    assert error.hint == "run as root: apt-get install podman runc"


def test_a_client_without_its_daemon(programs: Path) -> None:
    stand_in(programs, "docker", f"echo '{NO_DAEMON}' >&2; exit 1")
    assert NO_DAEMON in refusal().message
    # Control: a docker that runs containers is taken.
    stand_in(programs, "docker", "exit 0")
    assert find_engine() == Engine("docker")


def test_podman_gets_the_options_with_which_it_runs(programs: Path) -> None:
    """First its defaults, then limits that this process may set, then another runtime: the first that runs is used."""
    stand_in(programs, "docker", f"echo '{NO_DAEMON}' >&2; exit 1")
    stand_in(programs, "podman", "exit 0")
    assert find_engine() == Engine("podman")
    stand_in(programs, "podman", fails(LIMITS, "nofile="))
    found = find_engine()
    assert found.options == () and found.run_options[0] == "--ulimit"
    stand_in(programs, "podman", fails(CGROUPS, "--runtime runc --cgroup-manager=cgroupfs run --ulimit"))
    found = find_engine()
    assert found.options == ("--runtime", "runc", "--cgroup-manager=cgroupfs") and found.run_options
    assert found.command("ps") == ["podman", *found.options, "ps"]


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (CGROUPS, "run as root: apt-get install runc"),
        (NO_MAPS, "run as root: apt-get install uidmap"),
        (LIMITS, "build without a container: ./doitw packages_build PACKAGES_SOURCE=local"),
    ],
)
def test_each_failure_has_its_remedy(programs: Path, said: str, hint: str) -> None:
    stand_in(programs, "podman", fails(said))
    error = refusal()
    assert said.removeprefix("Error: ") in error.message and error.hint == hint


def test_an_engine_that_hangs(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PROBE_SECONDS", 0.2)
    stand_in(programs, "docker", "exec /bin/sleep 300")
    assert "no end after" in refusal().message


def test_limits_are_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 200))
    assert {word for one in candidates() for word in one.run_options if "nofile" in word} == {"nofile=200:200"}


def test_the_probe_runs_on_this_machine(tmp_path: Path) -> None:
    """The program in the probe's image ends with exit code 0, also without a container engine."""
    import io
    import subprocess
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(engines._probe_tar())) as tar:
        tar.extract("exit", tmp_path, filter="data")
    assert subprocess.run([tmp_path / "exit"], check=False, env={}).returncode == 0
