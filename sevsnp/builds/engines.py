# SPDX-License-Identifier: Apache-2.0
"""Finds a container engine that runs here, by running a trivial container: docker, or podman with what it needs.

A client alone proves nothing: its daemon may be off, and podman's defaults fail inside other containers, where limits
cannot be raised and crun refuses the cgroups.
"""

import hashlib
import io
import os
import re
import resource
import struct
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.system import progress
from sevsnp.system.command import find, run, temporary_directory
from sevsnp.system.command_failed import CommandFailed
from sevsnp.system.text import printable

# Seconds. The first command after a boot sets up the engine's storage.
PROBE_SECONDS = 120.0
ENGINE_SECONDS = 300.0
# Everything that we make in an engine has this label; the value says whose it is.
LABEL = "openend2e-sevsnp"
# What docker and podman read from the environment to find their daemon, storage and settings.
_KEPT = (
    "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "CONTAINERS_CONF",
    "CONTAINERS_STORAGE_CONF", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "DBUS_SESSION_BUS_ADDRESS",
)  # fmt: skip
_FILES = 4096
_BASE = 0x400000


@dataclass(frozen=True)
class Engine:
    """An engine that runs: its program, the options before each subcommand, and those of ``run``."""

    program: str
    options: tuple[str, ...] = ()
    run_options: tuple[str, ...] = ()

    def command(self, *words: str | Path) -> list[str]:
        return [self.program, *self.options, *map(str, words)]

    def __call__(self, *words: str | Path, timeout: float = ENGINE_SECONDS, hint: str = "") -> str:
        """Run a subcommand and return what it prints. Raises :class:`CommandFailed`."""
        # TMPDIR is not that of other commands: the engine's own processes outlive this one, and the guardian ends
        # whatever has our TMPDIR.
        variables = {name: os.environ[name] for name in _KEPT if name in os.environ}
        variables["TMPDIR"] = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108
        return run(self.command(*words), env=variables, timeout=timeout, hint=hint).decode(errors="replace").strip()

    def as_this_user(self) -> tuple[str, ...]:
        """The options with which a container's files belong to this user.

        Root in a container of rootless podman or docker is this user already, and podman run by root is root's.
        """
        if (
            self.program != "docker"
            or os.geteuid() == 0
            or "rootless" in self("info", "--format", "{{.SecurityOptions}}")
        ):
            return ()
        return ("--user", f"{os.geteuid()}:{os.getegid()}")

    def start(self, *words: str | Path, timeout: float = ENGINE_SECONDS) -> str:
        """``run`` with the options that containers need here."""
        return self("run", *self.run_options, "--pull=never", *words, timeout=timeout)


def is_absent(error: CommandFailed) -> bool:
    """Whether an engine says that there is no container or image of that name."""
    return re.search(r"no such|does not exist|no container with|not known", error.said, re.IGNORECASE) is not None


def candidates() -> Iterator[Engine]:
    """The engines to try, the most ordinary first."""
    yield Engine("docker")
    # Limits that this process may set itself: podman would raise them, which a container may not.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    limits = ("--ulimit", f"nofile={files}:{files}", "--ulimit", "nproc=4096:4096")
    for options in ((), ("--runtime", "runc", "--cgroup-manager=cgroupfs")):
        for run_options in ((), limits):
            yield Engine("podman", options, run_options)


def find_engine(tried: Sequence[Engine] | None = None) -> Engine:
    """The first engine that runs a container. Raises :class:`UserError` that says why each did not, and what helps."""
    said: dict[str, list[str]] = {}
    for engine in tried if tried is not None else tuple(candidates()):
        why = said.setdefault(engine.program, [])
        if find(engine.program) is None:
            continue
        progress.step(f"trying {engine.program}")
        try:
            probe(engine)
        except UserError as error:
            why.append(_reason(error))
        else:
            return engine
    shown = "; ".join(f"{name}: {why[-1] if why else 'not installed'}" for name, why in said.items())
    raise UserError(f"no container engine runs here: {shown}", _remedy(said))


def probe(engine: Engine) -> None:
    """Run a container that ends at once. Raises :class:`UserError` if the engine cannot."""
    image = _probe_image(engine)
    engine.start("--rm", "--network", "none", image, "/exit", timeout=PROBE_SECONDS)


def _probe_image(engine: Engine) -> str:
    content = _probe_tar()
    name = f"localhost/sevsnp-probe:{hashlib.sha256(content).hexdigest()[:12]}"
    try:
        engine("image", "inspect", "--format", "{{.Id}}", name, timeout=PROBE_SECONDS)
    except CommandFailed:
        with temporary_directory("sevsnp-probe.") as scratch:
            (scratch / "probe.tar").write_bytes(content)
            label = f"LABEL {LABEL}=probe"
            engine("import", "--change", label, scratch / "probe.tar", name, timeout=PROBE_SECONDS)
    return name


def _probe_tar() -> bytes:
    """An image with one static program, which ends with exit code 0: an ELF header, a segment and ten bytes of code."""
    code = b"\x31\xff\xb8\x3c\x00\x00\x00\x0f\x05"  # xor edi,edi; mov eax,60 (exit); syscall
    start = 64 + 56
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = start + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 4096)
    entry = tarfile.TarInfo("exit")
    entry.mode, entry.size = 0o755, size
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(header + segment + code))
    return made.getvalue()


def _reason(error: UserError) -> str:
    """The last line of what the engine said."""
    said = error.said if isinstance(error, CommandFailed) else error.message
    lines = [line for line in said.splitlines() if line.strip() and "See 'docker" not in line]
    return printable(lines[-1].strip().removeprefix("Error: ")) if lines else "it failed without a message"


def _remedy(said: dict[str, list[str]]) -> str:
    """What helps, for the engine that came nearest to running; or how to build without one."""
    podman = " ".join(said.get("podman", ()))
    if "newuidmap" in podman or "subuid" in podman:
        return "run as root: apt-get install uidmap"
    if "hybrid mode" in podman and find("runc") is None:
        return "run as root: apt-get install runc"
    if find("podman") is None:
        return "run as root: apt-get install podman runc"
    return "build without a container: ./doitw packages_build PACKAGES_SOURCE=local"
