# SPDX-License-Identifier: Apache-2.0
"""A hostile host's access to a running guest: it types on the serial console, and observes the machine."""

import contextlib
import re
import socket
import subprocess
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sevsnp.qemu.qmp import Qmp
from sevsnp.system.files import short_name
from tests.support.harness import BOOT_SECONDS
from tests.support.waiting import NET, seconds_used, wait_until

# An attacker's attempts to get a prompt: Enter, Ctrl-C, Ctrl-D, a login, the boot loader's and systemd's keys.
KEYSTROKES = b"\r\n\x03\x04\x1a\x1b\x1broot\r\n\r\nid; echo shell-$((6*7))\r\n"
# The console text if an attempt succeeded: prompts, and the output of the last command.
_PROMPTS = re.compile(
    r"login:|Password:|\(initramfs\)|shell-42|uid=0|[#$] $|Press Enter|Give root password|grub>|Shell>", re.MULTILINE
)
# Samples of the next instruction, one for each _USED processor seconds of QEMU: so many at one place mean a dead loop.
# Between samples that follow the clock, a busy machine may not run the guest at all.
_SAMPLES, _USED = 100, 0.05


@dataclass(frozen=True)
class Sockets:
    """The sockets of QEMU's serial console and of a second control connection; ``arguments`` are their options."""

    directory: Path

    @property
    def arguments(self) -> tuple[str, ...]:
        # The launcher makes the console a chardev `serial`; -set turns it into one that accepts input.
        values = {"backend": "socket", "path": self.directory / "console", "server": "on", "wait": "off"}
        changes = [word for name, value in values.items() for word in ("-set", f"chardev.serial.{name}={value}")]
        return (*changes, "-qmp", f"unix:{self.directory}/control,server=on,wait=off")


class Hands:
    """Keyboard and control socket of one guest."""

    def __init__(self, sockets: Sockets) -> None:
        self._qmp = Qmp(sockets.directory / "control")
        self._console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._console.connect(str(sockets.directory / "console"))
        # A console that is not read stops the guest after some hundred bytes.
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while self._console.recv(65536):
                pass

    def type(self, text: bytes = KEYSTROKES) -> None:
        """Type ``text``; does nothing if the guest has ended."""
        with contextlib.suppress(OSError):
            self._console.sendall(text)

    def press_sysrq(self, key: bytes) -> None:
        """Send a break on the serial line and a key: the kernel's magic SysRq."""
        self._qmp.command("chardev-send-break", id="serial")
        self.type(key)

    def press(self, *keys: str) -> None:
        """Press keys (QEMU's names) on the guest's keyboard, all at once."""
        pressed = [{"type": "qcode", "data": key} for key in keys]
        self._qmp.command("send-key", **{"keys": pressed, "hold-time": 100})

    def plug(self, driver: str, bus: str, **properties: object) -> None:
        """Add a device on ``bus`` while the machine runs."""
        self._qmp.command("device_add", driver=driver, bus=bus, **properties)

    def instruction(self) -> int:
        """The address of the next instruction of the first vCPU."""
        registers = str(self._qmp.command("human-monitor-command", **{"command-line": "info registers"}))
        # It is EIP until the firmware has switched to 64 bits.
        return int(registers.partition("IP=")[2].split()[0], 16)

    def go_on(self) -> None:
        """Let a stopped machine continue."""
        self._qmp.command("cont")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the machine, and with it its disks, while the context lasts."""
        self._qmp.command("stop")
        try:
            yield
        finally:
            self._qmp.command("cont")

    def write_clock(self, register: int, value: int) -> None:
        """Write a register of the machine's battery-backed clock through its two ports, with the machine stopped."""
        with self.paused():
            for port, byte in ((0x70, register), (0x71, value)):
                self._qmp.command("human-monitor-command", **{"command-line": f"o /b {port:#x} {byte:#x}"})

    def close(self) -> None:
        self._qmp.__exit__(None, None, None)
        with contextlib.suppress(OSError):
            self._console.shutdown(socket.SHUT_RDWR)
        self._reader.join(NET)
        self._console.close()


class LoopWatch:
    """Finds out whether the first vCPU of the QEMU ``pid`` turns in a dead loop."""

    def __init__(self, hands: Hands, pid: int) -> None:
        self._hands, self._pid = hands, pid
        self._seen: deque[int] = deque(maxlen=_SAMPLES)
        self._used = seconds_used(pid)

    def is_looping(self) -> bool:
        """Take a sample if the guest has run since the last one; whether most samples were at one place."""
        if (used := seconds_used(self._pid)) - self._used >= _USED:
            self._seen.append(self._hands.instruction())
            self._used = used
        # Timer interrupts still arrive, so some samples are elsewhere.
        return len(self._seen) == _SAMPLES and Counter(self._seen).most_common(1)[0][1] > _SAMPLES * 3 // 4


def wait_dead_loop(hands: Hands, process: subprocess.Popen[bytes]) -> None:
    """Wait until the guest's first vCPU turns in a dead loop."""
    watch = LoopWatch(hands, process.pid)
    wait_until(watch.is_looping, lambda: "no dead loop", BOOT_SECONDS)


def prompts(log: str) -> list[str]:
    """Everything in a console log that looks like a prompt or a shell's answer."""
    return _PROMPTS.findall(log)


@contextlib.contextmanager
def sockets() -> Iterator[Sockets]:
    """A directory for the sockets, with a name that is short enough for socket paths."""
    with tempfile.TemporaryDirectory(prefix="hands-") as name, short_name(Path(name)) as short:
        yield Sockets(short)


@contextlib.contextmanager
def hands_on(where: Sockets) -> Iterator[Hands]:
    """The hands on a guest that runs with ``where.arguments``."""
    hands = Hands(where)
    try:
        yield hands
    finally:
        hands.close()
