# SPDX-License-Identifier: Apache-2.0
"""A QEMU under an attacker's control opens only what it was given. Each control is a QEMU without that limit."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.qemu.confine import Access, landlock_version, wrapped
from sevsnp.qemu.process import environment
from tests.conftest import PROJECT, Built
from tests.support.confined import files_of, opened_by, qemus_with, up
from tests.support.waiting import wait_until

EVERYTHING = Access(everything=True)
needs_landlock = pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")
needs_ports = pytest.mark.skipif(landlock_version() < 4, reason="this kernel's Landlock knows no ports")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary"
    path.write_bytes(b"of the owner".ljust(1 << 16, b"."))
    return path


def node(path: Path, read_only: bool = True) -> list[str]:
    return ["-blockdev", f"driver=file,node-name=x,filename={path},read-only={'on' if read_only else 'off'}"]


@needs_landlock
def test_qemu_opens_only_the_files_that_it_was_given(built: Built, canary: Path) -> None:
    """The options of QEMU name another file."""
    files, said = opened_by(built.qemu, node(canary), Access())
    assert files == [] and "Permission denied" in said, said
    for access in (EVERYTHING, Access(read=(str(canary),))):
        files, said = opened_by(built.qemu, node(canary), access)
        assert str(canary) in files, said


@needs_landlock
def test_qemu_does_not_write_to_a_file_that_it_may_only_read(built: Built, canary: Path) -> None:
    files, said = opened_by(built.qemu, node(canary, read_only=False), Access(read=(str(canary),)))
    assert files == [] and "Permission denied" in said, said
    files, said = opened_by(built.qemu, node(canary, read_only=False), Access(write=(str(canary),)))
    assert str(canary) in files, said


@needs_landlock
@pytest.mark.parametrize(
    "name", ["/proc/{parent}/fd/{descriptor}", "/proc/{parent}/root{path}", "/proc/self/root{path}"]
)
def test_qemu_opens_no_file_through_proc(built: Built, canary: Path, name: str) -> None:
    """The process that starts QEMU has the file open, and belongs to the same user."""
    descriptor = os.open(canary, os.O_RDONLY)
    try:
        path = Path("/proc", name.format(parent=os.getpid(), descriptor=descriptor, path=canary))
        files, said = opened_by(built.qemu, node(path), Access())
        assert files == [] and "Permission denied" in said, said
        files, said = opened_by(built.qemu, node(path), EVERYTHING)
        assert str(canary) in files, said
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def connected(port: int) -> list[str]:
    return ["-chardev", f"socket,id=x,host=127.0.0.1,port={port}"]


@needs_ports
def test_the_qemu_of_a_restricted_guest_connects_to_no_server(built: Built) -> None:
    with listening() as port:
        _, said = opened_by(built.qemu, connected(port), Access(listen=(1,)))
        assert "Permission denied" in said
        files, said = opened_by(built.qemu, connected(port), Access(listen=(1,), reach=True))
        assert files and not said, said


@needs_ports
def test_qemu_listens_at_its_own_ports_only(built: Built) -> None:
    with listening() as port:
        pass
    words = ["-chardev", f"socket,id=x,host=127.0.0.1,port={port},server=on,wait=off"]
    _, said = opened_by(built.qemu, words, Access(listen=(1,), reach=True))
    assert "Permission denied" in said
    files, said = opened_by(built.qemu, words, Access(listen=(port,)))
    assert files and not said, said


def test_a_qemu_without_ports_has_no_network(built: Built) -> None:
    """This is the appliance's case; it includes UDP and all other protocols that Landlock does not cover."""
    with up(built.qemu, [], Access()) as (process, said):
        assert process, said
        inside = os.readlink(f"/proc/{process.pid}/ns/net")
        interfaces = Path(f"/proc/{process.pid}/net/dev").read_text().splitlines()[2:]
    own = os.readlink("/proc/self/ns/net")
    if inside == own and subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not make network namespaces here")
    assert inside != own and [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    with up(built.qemu, [], Access(listen=(1,))) as (process, said):
        assert process and os.readlink(f"/proc/{process.pid}/ns/net") == own, said


_ROADS = """
import errno, fcntl, os, socket, sys
def answer(road):
    try:
        road()
        return "open"
    except OSError as error:
        return "refused" if error.errno == errno.EACCES else "open"
def listen():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{sys.argv[2]}/own")
        server.listen()
roads = {
    "listening": listen,
    "UNIX": lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1]),
    "UNIX datagrams": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC),
    "MPTCP": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262),
    "typing": lambda: fcntl.ioctl(0, 0x5412, b"x"),
}
print(*sorted(name for name, road in roads.items() if answer(road) == "refused"), sep=",")
"""


@pytest.mark.parametrize(
    ("access", "refused"),
    [
        (Access(listen=(1,)), {"UNIX", "UNIX datagrams", "UDP", "MPTCP", "typing"}),
        (Access(listen=(1,), reach=True), {"typing"}),
        (None, set[str]()),
    ],
    ids=["restricted", "open", "control"],
)
def test_sockets_and_terminals_outside_landlock_are_refused(
    tmp_path: Path, access: Access | None, refused: set[str]
) -> None:
    """Sockets of the user's other programs, other protocols, and the user's terminal."""
    (tmp_path / "scratch").mkdir()
    argv = ["/usr/bin/python3", "-I", "-S", "-c", _ROADS, str(tmp_path / "of-the-user"), str(tmp_path / "scratch")]
    words = wrapped(argv, access._replace(scratch=(str(tmp_path / "scratch"),))) if access else argv
    ours, terminal = os.openpty()
    with socket.socket(socket.AF_UNIX) as server, open(ours), open(terminal) as stdin:
        server.bind(str(tmp_path / "of-the-user"))
        server.listen()
        done = subprocess.run(
            words, env=environment(), stdin=stdin, capture_output=True, text=True, check=True, timeout=60
        )
    assert done.stdout.strip() == ",".join(sorted(refused))


def undumped(pid: int) -> list[bool]:
    """Whether mappings like the guest's memory, here 64 MiB, are left out of core dumps (proc(5): VmFlags dd)."""
    size, flags = "", []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = line.split()[1]
        elif line.startswith("VmFlags:") and size == str(64 << 10):
            flags.append("dd" in line.split())
    return flags


def test_no_core_dump_has_the_guest_s_memory(built: Built) -> None:
    memory = ["-m", "64M", "-accel", "tcg"]
    with up(built.qemu, memory, Access(), "q35") as (process, said):
        assert process, said
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert "Max core file size 1 1 bytes" in " ".join(limits.split())
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
        assert undumped(process.pid) == [True]
    bare = subprocess.Popen([built.qemu, "-machine", "q35", *memory, "-nodefaults", "-display", "none", "-S"])
    try:
        assert wait_until(lambda: undumped(bare.pid), lambda: "QEMU with memory") == [False]
        assert "Seccomp:\t0" in Path(f"/proc/{bare.pid}/status").read_text()
    finally:
        bare.kill()
        bare.wait()


_PARENT = """
import subprocess, sys, time
from pathlib import Path
from sevsnp.qemu.confine import Access
from sevsnp.qemu.process import environment, start
qemu, log, how = sys.argv[1:]
words = ["-machine", "none", "-nodefaults", "-display", "none", "-S", "-name", log]
if how == "ours":
    start(Path(qemu), words, Access(), terminal=False, messages=Path(log))
else:
    subprocess.Popen([qemu, *words, "-sandbox", "on"], env=environment(), stdin=subprocess.DEVNULL)
time.sleep(300)
"""


@pytest.mark.parametrize("how", ["ours", "bare"])
def test_qemu_is_killed_with_its_parent_process(built: Built, tmp_path: Path, how: str) -> None:
    """The parent gets SIGKILL, so it cannot stop QEMU itself."""
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(built.qemu), str(log), how], cwd=PROJECT)
    try:
        # With more than its standard files open it is past all that starts it.
        wait_until(
            lambda: any(len(files_of(pid)) > 4 for pid in {*qemus_with(str(log))} - {parent.pid}), lambda: "QEMU"
        )
    finally:
        parent.kill()
        parent.wait()
    if how == "ours":
        wait_until(lambda: not qemus_with(str(log)), lambda: "end of QEMU")
    else:
        assert qemus_with(str(log)), "it lives on"
        for pid in qemus_with(str(log)):
            os.kill(pid, signal.SIGKILL)


def test_no_program_starts_if_the_parent_process_has_ended(tmp_path: Path) -> None:
    """The parent ended before the child could ask to be killed with it. Control: with a living parent it starts."""
    words = wrapped(["/bin/touch", str(tmp_path / "there")], Access(scratch=(str(tmp_path),)))
    assert words[5] == str(os.getpid())
    words[5] = "1"
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is gone" in done.stderr and not (tmp_path / "there").exists()
    words[5] = str(os.getpid())
    subprocess.run(words, env=environment(), check=True)
    assert (tmp_path / "there").exists()


# A filter that answers landlock_create_ruleset as a kernel does that has no such call (seccomp(2), classic BPF).
_WITHOUT = """
import ctypes, struct, sys
from pathlib import Path
instructions = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
assert not libc.prctl(38, 1, 0, 0, 0)
assert not libc.prctl(22, 2, program, 0, 0)
from sevsnp.qemu.confine import Access, landlock_version
assert landlock_version() == 0
from tests.support.confined import opened_by
qemu, canary = map(Path, sys.argv[1:])
for _ in range(2):
    files, said = opened_by(qemu, ["-blockdev", f"driver=file,node-name=x,filename={canary},read-only=on"], Access())
    print(str(canary) in files)
"""


def test_a_kernel_without_landlock_is_reported_once(built: Built, canary: Path) -> None:
    """QEMU runs all the same. Control: the tests above, on the same kernel without the filter."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, str(built.qemu), str(canary)],
        cwd=PROJECT, env={**environment(), "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert done.stderr.count("this kernel has no Landlock") == 1
