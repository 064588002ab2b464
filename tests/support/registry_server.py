# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry on loopback, unpacked from its pinned package: open, with a password, or read-only.

`python -m tests.support.registry_server [MIRROR]` pins the list anew.
"""

import functools
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.pinned import PinnedSet
from tests.support.processes import ends_with_us
from tests.support.waiting import NET, wait_until

PROGRAMS = PinnedSet("test")
# For the variant with a password. The hash is bcrypt, the only one that the registry accepts.
USER, PASSWORD = "builder", "correct horse"
PASSWORD_HASH = "$2b$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e"


def unpack_registry(root: Path) -> Path:
    """The registry's program, below ``root``: from the cache, or fetched into it. The host's libc is enough for it."""
    PROGRAMS.unpack(root)
    return root / "usr" / "bin" / "docker-registry"


@pytest.fixture
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for logins, so that a test uses nobody's."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker"


@dataclass
class Registry:
    """A registry that can be stopped and started again; its port and its files stay the same."""

    program: Path
    directory: Path
    options: dict[str, Any] = field(default_factory=dict)
    _process: "subprocess.Popen[bytes] | None" = None

    @functools.cached_property
    def port(self) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            found: int = probe.getsockname()[1]
            return found

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def reference(self) -> str:
        return f"oci://{self.host}/cache"

    @property
    def root(self) -> Path:
        """The directory in which it stores its files."""
        return self.directory / "storage"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def blob(self, digest: str) -> Path:
        """The file with the bytes of ``sha256:…``."""
        name = digest.removeprefix("sha256:")
        return self.root / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(self.root)}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
        }
        for name, value in self.options.items():
            document[name] = {**document.get(name, {}), **value}
        self.config.write_text(yaml.safe_dump(document))
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ends_with_us(self.program, "serve", self.config),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
                start_new_session=True,
            )
        process = self._process
        wait_until(lambda: self._listens() or process.poll() is not None, what=lambda: self.log[-2000:])
        assert process.poll() is None, f"the registry does not start:\n{self.log[-2000:]}"

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), NET).close()
        except OSError:
            return False
        return True

    @property
    def config(self) -> Path:
        return self.directory / "config.yml"

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(NET)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def collect_garbage(self) -> str:
        """Remove blobs and manifests to which no tag refers, as an administrator does, with the registry stopped."""
        self.stop()
        done = subprocess.run(
            [self.program, "garbage-collect", "--delete-untagged", self.config],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=NET,
            check=True,
        )
        self.start()
        return done.stdout


def running(program: Path, directory: Path, **options: Any) -> Iterator[Registry]:
    directory.mkdir(parents=True, exist_ok=True)
    server = Registry(program, directory, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def registry_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_registry(tmp_path_factory.mktemp("docker-registry"))


@pytest.fixture(scope="session")
def registry(registry_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry for everyone, for the whole session."""
    yield from running(registry_program, tmp_path_factory.mktemp("registry"))


@pytest.fixture
def own_registry(registry_program: Path, tmp_path: Path) -> Iterator[Registry]:
    """A registry for one test, which may stop it, tamper with it, or examine all of it."""
    yield from running(registry_program, tmp_path / "own-registry")


@pytest.fixture
def locked_registry(registry_program: Path, tmp_path: Path) -> Iterator[Registry]:
    """A registry that requires :data:`USER` and :data:`PASSWORD`."""
    directory = tmp_path / "locked-registry"
    directory.mkdir()
    (directory / "htpasswd").write_text(f"{USER}:{PASSWORD_HASH}\n")
    yield from running(
        registry_program,
        directory,
        auth={"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}},
    )


def set_read_only(server: Registry, on: bool = True) -> None:
    """Restart ``server`` so that it refuses uploads, or accepts them again."""
    server.stop()
    server.options["storage"] = {
        "filesystem": {"rootdirectory": str(server.root)},
        "maintenance": {"readonly": {"enabled": on}},
    }
    server.start()
