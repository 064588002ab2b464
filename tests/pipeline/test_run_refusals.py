# SPDX-License-Identifier: Apache-2.0
"""Bad inputs of a launch, an attestation or a build are refused in one line that names them; no file is left."""

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sevsnp.e2e.guest import free_port
from sevsnp.errors import UserError
from sevsnp.qemu.process import check_options
from sevsnp.qemu.run_options import RunOptions
from tests.conftest import Built
from tests.support.copies import copy_built, leavings, one_line, ran
from tests.support.replacing import replaced_once
from tests.support.waiting import NET

EMULATED = "build/verity/vm-config-verity.emulated.toml"
IMAGE, TREE = "build/verity/verity.img", "build/verity/hash-tree.img"


@pytest.fixture(scope="module")
def copy(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    directory = tmp_path_factory.mktemp("refusals")
    yield copy_built(built, directory / "project")
    shutil.rmtree(directory)


@contextlib.contextmanager
def changed(path: Path, change: Callable[[bytearray], None]) -> Iterator[None]:
    """A file with other content for a while. What was built is hard-linked, so it is moved aside and comes back."""
    kept = path.with_suffix(".kept")
    path.rename(kept)
    try:
        data = bytearray(kept.read_bytes())
        change(data)
        path.write_bytes(data)
        yield
    finally:
        kept.replace(path)


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def truncate(data: bytearray) -> None:
    del data[-4096:]


def refused(built: Built, *words: str, ports: bool = True) -> str:
    """Run a task that must fail: its one line and what follows it. No guest was started and nothing is left."""
    if ports:
        words = (f"SSH_PORT={free_port()}", f"ATTEST_PORT={free_port()}", *words)
    done = built.doit(*words, check=False)
    assert done.returncode in (1, 2, 3), done.stdout
    line = one_line(done.stdout)
    assert not list(built.build.glob("run/*/serial.log"))
    assert leavings(built.project) == []
    return line + done.stdout.partition(line)[2]


LAUNCHES: dict[str, tuple[list[str], list[str]]] = {
    "CPUS": (["CPUS=2"], [f"CPUS=2: {EMULATED} was made for CPUS=1", "./doitw setup_verity CPUS=2"]),
    "POLICY": (["POLICY=0x20000"], ["made for POLICY=0x30000", "./doitw setup_verity POLICY=0x20000"]),
    "CPU_MODEL": (["CPU_MODEL=EPYC-Milan"], ["for CPU_MODEL=EPYC-v4", "./doitw setup_verity CPU_MODEL=EPYC-Milan"]),
    "one port for two": (
        ["SSH_PORT=4321", "ATTEST_PORT=4321"],
        ["SSH_PORT and ATTEST_PORT: found 4321 for both, expected two ports"],
    ),
    "a forward without the guest's port": (
        ["FORWARD=8443"],
        ["FORWARD=8443 (from the command line): expected pairs of TCP ports with commas between them"],
    ),
    "one port for two forwards": (
        ["FORWARD=8443:443,8443:80"],
        ["FORWARD=8443:443,8443:80 (from ", "each port here once"],
    ),
    "a forward that is ssh's": (
        ["SSH_PORT=4321", "FORWARD=4321:443"],
        ["FORWARD=4321:443: 4321 is the SSH_PORT, expected another port", "take another one: FORWARD="],
    ),
    "no port": (["SSH_PORT=0"], ["SSH_PORT=0 (from the command line): expected a TCP port from 1 to 65535"]),
    "too little memory": (["MEMORY=1M"], ["MEMORY=1M (from the command line): expected guest memory from 256M"]),
    "no such memory": (["MEMORY=900T"], ["MEMORY=900T (from ", "expected guest memory from 256M to 4096G"]),
    "more memory than there is": (["MEMORY=4000G"], ["MEMORY=4096000M: this machine has ", "MEMORY=2G"]),
    "no config": (["VM_CONFIG=nonsuch.toml"], ["nonsuch.toml: no such VM config", "./doitw setup_verity"]),
    "no image": (
        ["VERITY_IMAGE=nonsuch.img"],
        ["nonsuch.img: no such file (verity-data of the VM config)", "./doitw setup_verity"],
    ),
    "no hash tree": (["VERITY_HASH_TREE=nonsuch.img"], ["nonsuch.img: no such file (verity-hash of the VM config)"]),
    "an image for a tree": ([f"VERITY_HASH_TREE={IMAGE}"], ["verity.img: found ", " bytes, the VM config says "]),
    "unknown setting": (["NONSUCH=1"], ["unknown setting NONSUCH=1", "all settings: ./doitw settings"]),
    "unknown platform": (["PLATFORM=xen"], ["PLATFORM=xen (from the command line): expected auto, snp or emulated"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAUNCHES)
def test_bad_settings_of_a_launch(copy: Built, name: str) -> None:
    words, expected = LAUNCHES[name]
    said = refused(copy, "run_sev_snp_verity", "PLATFORM=emulated", *words)
    for text in expected:
        assert text in said, said


def test_no_hardware(copy: Built) -> None:
    if Path("/dev/sev").exists():
        pytest.skip("this host has SEV hardware")
    said = refused(copy, "run_sev_snp_verity", "PLATFORM=snp")
    assert "PLATFORM=snp: this host cannot run SEV-SNP guests: " in said and "use PLATFORM=emulated" in said


@pytest.mark.parametrize("name", ["SSH_PORT", "ATTEST_PORT", "FORWARD"])
def test_a_port_in_use(copy: Built, name: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        text = f"{port}:443" if name == "FORWARD" else str(port)
        said = refused(copy, "run_sev_snp_verity", "PLATFORM=emulated", f"{name}={text}")
    assert f"{name}={text}: in use on 127.0.0.1" in said and f"take another one: {name}=" in said


CHANGES: dict[str, tuple[str, Callable[[bytearray], None], str]] = {
    "a byte of the image": (IMAGE, flip, "(verity-data)"),
    "a shorter image": (IMAGE, truncate, "bytes, the VM config says"),
    "a byte of the tree": (TREE, flip, "(verity-hash)"),
    "a shorter tree": (TREE, truncate, "bytes, the VM config says"),
    "kernel": ("build/boot/stage-1.efi", flip, "(kernel)"),
    "initramfs": ("build/initramfs.emulated.cpio.zst", flip, "(initrd)"),
    "command line": ("build/verity/cmdline.emulated", flip, "(cmdline)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_files(copy: Built, name: str) -> None:
    file, change, expected = CHANGES[name]
    with changed(copy.project / file, change):
        said = refused(copy, "run_sev_snp_verity", "PLATFORM=emulated")
    assert f"{copy.project / file}: found " in said and expected in said and "./doitw setup_verity" in said, said


def test_a_missing_file(copy: Built) -> None:
    kernel = copy.build / "boot" / "stage-1.efi"
    kernel.rename(kernel.with_suffix(".kept"))
    try:
        said = refused(copy, "run_sev_snp_verity", "PLATFORM=emulated")
    finally:
        kernel.with_suffix(".kept").rename(kernel)
    assert f"{kernel}: no such file (kernel of the VM config)" in said


def test_control_the_same_files_under_other_names_are_accepted(copy: Built, tmp_path: Path) -> None:
    """Only the size of the memory is refused, which is checked last."""
    for name in ("verity.img", "hash-tree.img"):
        (tmp_path / name).hardlink_to(copy.build / "verity" / name)
    words = [f"VERITY_IMAGE={tmp_path}/verity.img", f"VERITY_HASH_TREE={tmp_path}/hash-tree.img"]
    said = refused(copy, "run_sev_snp_verity", "PLATFORM=emulated", *words, "MEMORY=4000G", "CPUS=1", "POLICY=0x30000")
    assert "MEMORY=4096000M" in said


BAD_CONFIGS = {
    "unknown key": ('workflow = "verity"', 'workflow = "verity"\nnonsuch = 1', "launch.nonsuch: found 1"),
    "wrong type": ("vcpus = 1", 'vcpus = "one"', "launch.vcpus: found 'one', expected an integer from 1"),
    "out of range": ("vcpus = 1", "vcpus = 0", "launch.vcpus: found 0, expected an integer from 1"),
    "absent": ("vcpus = 1", "", "launch.vcpus: found nothing, expected an integer"),
    "not TOML": ("vcpus = 1", "vcpus = = 1", "not a VM config: "),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_vm_configs(copy: Built, tmp_path: Path, name: str) -> None:
    old, new, expected = BAD_CONFIGS[name]
    text = (copy.project / EMULATED).read_text()
    tomllib.loads(text)
    (tmp_path / "mine.toml").write_text(replaced_once(text, old, new))
    for task in ("run_sev_snp_verity", "attest_verity"):
        said = refused(copy, task, f"VM_CONFIG={tmp_path}/mine.toml")
        assert f"{tmp_path}/mine.toml: {expected}" in said, said


def test_a_privileged_port_as_an_ordinary_user(tmp_path: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("on this machine every user may open port 80")
    options = RunOptions(tmp_path, 1 << 29, 80, free_port(), tmp_path)
    child = os.fork()
    if not child:
        # Another user from here on, in a process that does nothing else.
        with contextlib.suppress(PermissionError):
            os.setuid(65534)
        try:
            check_options(options)
        except UserError as error:
            os._exit(7 if "SSH_PORT=80: this user may not open it" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@contextlib.contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of 127.0.0.1 where every connection gets ``answer``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(NET)


def endless(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"[" * 65536)


def closing(data: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(data)

    return answer


ANSWERS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "nothing": (closing(b""), "no answer: the connection was closed"),
    "garbage": (closing(b"\xff\x00SSH-2.0-nothing\r\n"), "bytes that are not JSON, expected a guest's answer"),
    "another document": (closing(b"[1]"), "found list, expected a JSON object"),
    "endless": (endless, "found more than 262144 bytes"),
    "no evidence": (closing(b'{"error": "none \\u001b[2J here"}'), "the guest gave no evidence: none ?[2J here"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_attestation_of_a_server_that_is_no_guest(copy: Built, name: str) -> None:
    answer, expected = ANSWERS[name]
    state = copy.build / "run" / "verity"
    state.mkdir(parents=True, exist_ok=True)
    earlier = [state / name for name in ("known_hosts", "ssh_config", "verdict.json", "verdict.emulated.json")]
    for path in earlier:
        path.write_text("of an earlier guest")
    with server(answer) as port:
        said = refused(copy, "attest_verity", "PLATFORM=emulated", f"PORT={port}", ports=False)
    assert f"127.0.0.1:{port}: " in said and expected in said, said
    # One wrong attempt locks nobody out of a guest that was accepted before.
    assert {path.read_text() for path in earlier} == {"of an earlier guest"}


@pytest.mark.parametrize("where", [["PORT={}"], ["ATTEST_PORT={}"], ["HOST=nonsuch.invalid", "PORT={}"]])
def test_attestation_where_no_server_answers(copy: Built, where: list[str]) -> None:
    words = [word.format(free_port()) for word in where]
    said = refused(copy, "attest_verity", "PLATFORM=emulated", *words, ports=False)
    assert ": no answer: " in said and "check that the guest runs" in said


def test_attestation_without_reference_values(copy: Built) -> None:
    said = refused(copy, "attest_verity", "VM_CONFIG=build/host-bundle/launch.emulated.toml")
    assert "launch.emulated.toml: no [reference]" in said


@pytest.mark.parametrize("task", ["run_guest", "run_sev_snp", "run_sev_snp_direct_boot"])
def test_a_plain_guest_without_its_disk(copy: Built, task: str) -> None:
    said = refused(copy, task, "IMAGE=nonsuch.qcow2")
    assert "nonsuch.qcow2: no such file" in said and "IMAGE=FILE" in said


@pytest.mark.parametrize(
    ("target", "task", "limit", "said"),
    [
        ("build/initramfs.cpio.zst", "initramfs", 10 << 20, "build/initramfs.cpio.zst: cannot be written: "),
        (IMAGE, "_verity_root", 100 << 20, f"{IMAGE}: cannot be written: File too large"),
    ],
    ids=["initramfs", "image"],
)
def test_a_full_disk_leaves_no_half_target(copy: Built, target: str, task: str, limit: int, said: str) -> None:
    whole = (copy.project / target).read_bytes()
    (copy.project / target).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "doit", task],
        cwd=copy.project,
        env={**os.environ, "CONFIG_DIR": str(copy.config_dir)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1, done.stdout
    assert said in one_line(done.stdout)
    assert not (copy.project / target).exists()
    assert leavings(copy.build) == []
    assert ran(copy.doit(task).stdout) == {task.replace("_", " ").strip()}
    assert (copy.project / target).read_bytes() == whole


INPUTS: dict[str, tuple[str, str]] = {
    "setup_verity IMAGE=nonsuch.tar": ("nonsuch.tar: no such file", IMAGE),
    "setup_verity IMAGE=build/layers/init.cpio.zst": (
        "init.cpio.zst: a compressed file with neither a tar archive nor a disk image in it, expected one of them",
        IMAGE,
    ),
    "setup_verity IMAGE=README.md": (
        "README.md: found neither a tar archive nor a disk image, expected an uncompressed tar archive",
        IMAGE,
    ),
    "setup_verity IMAGE=build": ("✗ verity root: build: not a regular file", IMAGE),
    "unpack_kernel KERNEL_DEB=nonsuch.deb": ("nonsuch.deb: no such file", "build/kernel/vmlinuz"),
    "unpack_kernel KERNEL_DEB=config.yaml": ("config.yaml: not a Debian package", "build/kernel/vmlinuz"),
}


@pytest.mark.parametrize("line", INPUTS)
def test_bad_inputs_of_a_build(copy: Built, line: str) -> None:
    expected, target = INPUTS[line]
    before = (copy.project / target).stat()
    assert expected in refused(copy, *line.split())
    after = (copy.project / target).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
