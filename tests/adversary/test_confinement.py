# SPDX-License-Identifier: Apache-2.0
"""What a QEMU can do that somebody got hold of: open what it was given. Each control is a QEMU without that wall."""

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
def test_it_opens_no_other_file(built: Built, canary: Path) -> None:
    """Whatever its options say."""
    files, said = opened_by(built.qemu, node(canary), Access())
    assert files == [] and "Permission denied" in said, said
    for access in (EVERYTHING, Access(read=(str(canary),))):
        files, said = opened_by(built.qemu, node(canary), access)
        assert str(canary) in files, said


@needs_landlock
def test_it_does_not_write_to_what_it_may_read(built: Built, canary: Path) -> None:
    files, said = opened_by(built.qemu, node(canary, read_only=False), Access(read=(str(canary),)))
    assert files == [] and "Permission denied" in said, said
    files, said = opened_by(built.qemu, node(canary, read_only=False), Access(write=(str(canary),)))
    assert str(canary) in files, said


@needs_landlock
@pytest.mark.parametrize(
    "name", ["/proc/{parent}/fd/{descriptor}", "/proc/{parent}/root{path}", "/proc/self/root{path}"]
)
def test_there_is_no_way_round_over_proc(built: Built, canary: Path, name: str) -> None:
    """The process that starts it may have the file open, and is the same user's."""
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
def test_a_guest_s_qemu_reaches_nobody_where_it_is_restricted(built: Built) -> None:
    with listening() as port:
        _, said = opened_by(built.qemu, connected(port), Access(listen=(1,)))
        assert "Permission denied" in said
        files, said = opened_by(built.qemu, connected(port), Access(listen=(1,), reach=True))
        assert files and not said, said


@needs_ports
def test_it_listens_at_its_own_ports_only(built: Built) -> None:
    with listening() as port:
        pass
    words = ["-chardev", f"socket,id=x,host=127.0.0.1,port={port},server=on,wait=off"]
    _, said = opened_by(built.qemu, words, Access(listen=(1,), reach=True))
    assert "Permission denied" in said
    files, said = opened_by(built.qemu, words, Access(listen=(port,)))
    assert files and not said, said


def test_without_ports_it_has_no_network_at_all(built: Built) -> None:
    """The appliance's, with UDP and all else that Landlock does not know."""
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
def test_what_landlock_does_not_know(tmp_path: Path, access: Access | None, refused: set[str]) -> None:
    """Other sockets of the user's, other protocols, and the user's terminal."""
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
def test_it_dies_with_its_parent(built: Built, tmp_path: Path, how: str) -> None:
    """By SIGKILL, of which the parent cannot tell anyone."""
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


def test_a_parent_that_is_gone_before_starts_nothing(tmp_path: Path) -> None:
    """Between its start and the wish to die with its parent. Control: with the parent there, the program runs."""
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


def test_a_kernel_without_landlock_is_said_once(built: Built, canary: Path) -> None:
    """QEMU runs all the same. Control: the tests above, on the same kernel without the filter."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, str(built.qemu), str(canary)],
        cwd=PROJECT, env={**environment(), "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert done.stderr.count("this kernel has no Landlock") == 1
