# SPDX-License-Identifier: Apache-2.0
"""The host bundle: what it contains and what not; ./run needs only QEMU, and leaves no process behind."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.e2e.guest import free_port
from sevsnp.host.console import MARKER
from sevsnp.vm_config.config import read_vm_config
from tests.conftest import Built
from tests.support.copies import copy_built
from tests.support.processes import ends_with_us
from tests.support.waiting import NET, wait_until

BOOT_SECONDS = 600


@pytest.fixture(scope="module")
def bundle(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle alone, moved to a directory with a space in its name and too long a one for a UNIX socket's."""
    target = tmp_path_factory.mktemp("host") / ("another place, far " + "away" * 40) / "the bundle"
    target.parent.mkdir()
    subprocess.run(["cp", "-a", "--", built.build / "host-bundle", target], check=True)
    return target


@pytest.fixture(scope="module")
def path(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PATH that has QEMU and nothing else: a link, whose target's files QEMU may open."""
    directory = tmp_path_factory.mktemp("qemu")
    (directory / "qemu-system-x86_64").symlink_to(built.qemu)
    return directory


def qemu_in(directory: Path, script: str) -> Path:
    directory.mkdir()
    qemu = directory / "qemu-system-x86_64"
    qemu.write_text(f"#!/bin/sh\n{script}\n")
    qemu.chmod(0o755)
    return directory


@contextlib.contextmanager
def running(bundle: Path, path: Path, *arguments: str, ports: bool = True) -> Iterator["subprocess.Popen[str]"]:
    """./run with an environment that is empty but for PATH and a directory for temporary files, of a long name."""
    given = ["--ssh-port", str(free_port()), "--attest-port", str(free_port())] if ports else []
    with tempfile.TemporaryDirectory(prefix="long" * 40) as scratch:
        process = subprocess.Popen(
            ends_with_us(bundle / "run", "--platform", "emulated", "--restricted", *given, *arguments),
            cwd="/",
            env={"PATH": str(path), "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def refused(bundle: Path, path: Path, *arguments: str, ports: bool = True) -> str:
    """The one line with which ./run refuses, without the lines before and what follows."""
    with running(bundle, path, *arguments, ports=ports) as process:
        output, _ = process.communicate(timeout=NET)
    assert process.returncode in (1, 2), output
    assert "Traceback" not in output
    (line,) = re.findall(r"^(?:run: |\./run: error: )(.*)$", output, re.MULTILINE)
    return str(line)


def descendants(pid: int) -> dict[int, str]:
    """The processes in the session of ``pid``, by id, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == pid and fields[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def qemu_of(process: "subprocess.Popen[str]") -> int:
    """The process id of the QEMU that ./run started, once it runs the guest."""

    def found() -> list[int]:
        assert process.poll() is None, process.communicate()[0]
        return [pid for pid, line in descendants(process.pid).items() if "-netdev" in line and "qemu" in line]

    return wait_until(found, what=lambda: f"no QEMU: {descendants(process.pid)}")[0]


def wait_for_words(process: "subprocess.Popen[str]", log: Path, words: str) -> None:
    """Wait until a guest's console ``log`` has ``words``; fails if ./run, the ``process``, ends before."""

    def said() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return log.exists() and words in log.read_text(errors="replace")

    wait_until(said, what=lambda: log.read_text(errors="replace")[-2000:], net=BOOT_SECONDS)


def nothing_left(pid: int) -> bool:
    return wait_until(lambda: not descendants(pid), what=lambda: descendants(pid))


def test_no_secret_and_no_policy(built: Built, bundle: Path) -> None:
    secrets = {
        "private key": b"PRIVATE KEY",
        "reference": b"[reference",
        "launch digest": built.config("snp").require_reference().launch_digest.hex().encode(),
        "user's key": built.keys.user_public.read_bytes().split()[1],
        "owner's certificate": built.keys.owner_certificate.read_bytes().splitlines()[1],
        "configuration directory": str(built.config_dir).encode(),
        "project directory": str(built.project).encode(),
        "home": f"{Path.home()}/".encode() if str(Path.home()) != "/" else b"\0never\0",
    }
    # The guest's root and its kernel come from packages and the user's own tar, not from what packs the bundle; their
    # names say which they are.
    opaque = {"verity.img", "hash-tree.img", "stage-1.efi", "OVMF.fd"}
    # The sources of Python, of cryptography and of what reads VM configs have the words that they look for.
    words, code = ("private key", "home", "reference"), ("runtime", "lib")
    found = []
    for file in (file for file in bundle.rglob("*") if file.is_file() and file.name not in opaque):
        data = file.read_bytes()
        inside = file.relative_to(bundle).parts[0]
        for name, secret in secrets.items():
            if secret in data and not (name in words and inside in code):
                found.append((str(file.relative_to(bundle)), name))
    assert found == []
    for name in ("launch.toml", "launch.emulated.toml"):
        assert read_vm_config(bundle / name).reference is None
    assert built.config("snp").reference is not None  # the control arm


def test_the_search_for_secrets_finds_a_planted_secret(built: Built, tmp_path: Path) -> None:
    owner = built.keys.owner_private.read_bytes()
    assert b"PRIVATE KEY" in owner and b"[reference" in (built.build / "verity/vm-config-verity.toml").read_bytes()
    for secret in (owner, b"[reference]"):
        (tmp_path / "x").write_bytes(secret)
        with pytest.raises(AssertionError):
            test_no_secret_and_no_policy(built, tmp_path)


def test_the_bundle_has_exactly_the_expected_files(built: Built, bundle: Path) -> None:
    assert {entry.name for entry in bundle.iterdir()} - {"state"} == {
        "run", "launch.toml", "launch.emulated.toml", "lib", "runtime", "OVMF.fd", "stage-1.efi",
        "initramfs.cpio.zst", "initramfs.emulated.cpio.zst", "cmdline", "cmdline.emulated", "verity.img",
        "hash-tree.img",
    }  # fmt: skip
    modules = {path.relative_to(bundle / "lib").as_posix() for path in (bundle / "lib").rglob("*.py")}
    assert {"sevsnp/host/bundle_run.py", "sevsnp/qemu/snp.py", "sevsnp/emulation/launch.py"} <= modules
    # Nothing of what an owner or a builder does.
    for name in (
        "sevsnp/owner/attestation.py",
        "sevsnp/keys/pairs.py",
        "sevsnp/release/bundle.py",
        "sevsnp/emulation/verify.py",
    ):
        assert name not in modules
    assert not [module for module in modules if module.startswith(("sevsnp/images", "sevsnp/packages", "tasks"))]


def names(bundle: Path) -> set[str]:
    """All files of a bundle by relative path, but for the Python it brings along."""
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if not path.is_dir()}
    return {name for name in files if not name.startswith(("runtime/", "state/"))}


@pytest.mark.full
@pytest.mark.parametrize("workflow", ["verity", "luks"])
def test_a_bundle_for_the_hardware_alone_has_no_emulator(
    built: Built, path: Path, tmp_path: Path, workflow: str
) -> None:
    copy = copy_built(built, tmp_path / "project")
    task, place = {"verity": ("host_bundle", "host-bundle"), "luks": ("host_bundle_luks", "host-bundle-luks")}[workflow]
    both, launched = names(copy.build / place), (copy.build / place / "launch.toml").read_bytes()
    copy.doit(task, "PLATFORM=snp")
    bundle = copy.build / place
    alone = names(bundle)
    emulated = {"launch.emulated.toml", "initramfs.emulated.cpio.zst", "cmdline.emulated"}
    assert emulated <= both and any(name.startswith("lib/sevsnp/emulation/") for name in both)  # control
    assert [name for name in alone if "emulat" in name] == []
    left_out = {name for name in both - alone if not name.startswith("lib/sevsnp/emulation/")}
    assert emulated <= left_out and alone < both
    assert (bundle / "launch.toml").read_bytes() == launched  # the same guest
    said = refused(bundle, path)
    assert said == "--platform emulated: this bundle was made for SEV-SNP alone"
    if not Path("/dev/sev").exists():
        assert "this bundle was made for SEV-SNP alone" in refused(bundle, path, "--platform", "auto")
    # The default again, and it is whole again.
    copy.doit(task)
    assert names(copy.build / place) == both


def test_all_paths_in_the_bundle_stay_inside_it(bundle: Path) -> None:
    for name in ("launch.toml", "launch.emulated.toml"):
        launch = read_vm_config(bundle / name).launch
        files = [file.path for file in (launch.firmware, launch.kernel, launch.initrd, launch.cmdline)]
        assert {path.parent for path in (*files, *(disk.path for disk in launch.disks))} == {bundle}
    links = [path for path in bundle.rglob("*") if path.is_symlink() and not path.resolve().is_relative_to(bundle)]
    assert links == []


def test_help_needs_no_program(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with running(bundle, tmp_path / "empty", "--help", ports=False) as process:
        output, _ = process.communicate(timeout=NET)
    assert process.returncode == 0 and "--attest-port" in output


def test_run_works_through_a_symbolic_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle / "run")
    done = subprocess.run([tmp_path / "link", "--help"], env={}, capture_output=True, text=True, check=True)
    assert "Start the guest of this bundle" in done.stdout


def test_no_qemu(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    if not shutil.which("qemu-system-x86_64", path="/usr/bin:/bin:/usr/sbin:/sbin"):
        assert refused(bundle, tmp_path / "empty") == "qemu-system-x86_64: no such program"
    assert refused(bundle, tmp_path / "empty", "--qemu", "/none/qemu") == "/none/qemu: no such program"


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("QEMU emulator version 9.2.4 (Debian 1:9.2)", "found version 9.2, expected 10.0 or newer"),
        ("QEMU emulator version 7.2", "found version 7.2, expected 10.0 or newer"),
        ("nothing of the kind", "found b'nothing of the kind\\n', expected QEMU emulator version"),
        ("", "found b'\\n', expected QEMU emulator version"),
    ],
)
def test_an_old_qemu(bundle: Path, tmp_path: Path, version: str, words: str) -> None:
    path = qemu_in(tmp_path / "path", f'echo "{version}"')
    assert words in refused(bundle, path)


@pytest.mark.full  # half a minute is waited for a control socket that never comes
def test_the_error_messages_of_a_failing_qemu_are_shown(bundle: Path, tmp_path: Path) -> None:
    script = 'case "$*" in --version) echo QEMU emulator version 10.0.2;; *) echo it broke >&2; exit 3;; esac'
    path = qemu_in(tmp_path / "path", script)
    with running(bundle, path) as process:
        output, _ = process.communicate(timeout=NET)
    assert process.returncode == 1
    assert "it broke" in output and "qemu.log" in output and "Traceback" not in output


@pytest.mark.parametrize("option", ["--ssh-port", "--attest-port", "--forward"])
def test_ports_in_use(bundle: Path, path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        value = f"{port}:443" if option == "--forward" else str(port)
        assert f"{option} {value}: in use on 127.0.0.1" in refused(bundle, path, option, value)


BAD_ARGUMENTS = {
    "--memory": ["1M", "x", "", "-1G"],
    "--ssh-port": ["0", "65536", "99999", "x", "-1", "1_000", "²"],
    "--forward": ["8443", "8443:443,8443:80", "0:1", "x:1"],
    "--platform": ["xen"],
}


@pytest.mark.parametrize("option", BAD_ARGUMENTS)
def test_bad_arguments(bundle: Path, path: Path, option: str) -> None:
    for value in BAD_ARGUMENTS[option]:
        assert f"argument {option}: " in refused(bundle, path, f"{option}={value}")


def test_more_memory_than_the_machine_has_is_refused(bundle: Path, path: Path) -> None:
    assert "--memory 4096000M: this machine has" in refused(bundle, path, "--memory", "4000G")


def test_no_hardware(bundle: Path, path: Path) -> None:
    if Path("/dev/sev").exists():
        pytest.skip("this host has SEV hardware")
    assert "--platform snp: this host cannot run SEV-SNP guests: " in refused(bundle, path, "--platform", "snp")


def test_a_changed_file(bundle: Path, path: Path) -> None:
    kernel = bundle / "stage-1.efi"
    data = kernel.read_bytes()
    try:
        kernel.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert f"{kernel}: found SHA-256 " in refused(bundle, path)
        kernel.unlink()
        assert f"{kernel}: no such file" in refused(bundle, path)
    finally:
        kernel.write_bytes(data)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_leaves_no_qemu(bundle: Path, path: Path, number: signal.Signals) -> None:
    with running(bundle, path) as process:
        qemu_of(process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=NET)
        assert nothing_left(process.pid), descendants(process.pid)
        assert process.returncode == (-number if number is signal.SIGKILL else 128 + number)
        assert "Traceback" not in output


@pytest.mark.boot
def test_the_bundle_boots_with_only_qemu_on_the_host(bundle: Path, path: Path) -> None:
    log = bundle / "state" / "serial.log"
    with running(bundle, path, "--memory", "1G") as process:
        qemu_of(process)
        wait_for_words(process, log, MARKER)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=NET)
        assert nothing_left(process.pid)
    assert "EMULATED – NOT CONFIDENTIAL" in output
    # Of the software secure processor only certificates stay.
    state = {entry.name: entry.read_bytes() for entry in (bundle / "state").iterdir()}
    assert {"ark.pem", "platform.json", "qemu.log", "serial.log"} <= state.keys()
    assert [name for name, data in state.items() if b"PRIVATE KEY" in data] == []
    assert not list(bundle.rglob("__pycache__"))
