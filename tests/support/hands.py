# SPDX-License-Identifier: Apache-2.0
"""A hostile host's access to a running guest: it types on the serial console, and observes the machine."""

import contextlib
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sevsnp.qemu.qmp import Qmp
from sevsnp.system.files import short_name
from tests.support.waiting import NET

# An attacker's attempts to get a prompt: Enter, Ctrl-C, Ctrl-D, a login, the boot loader's and systemd's keys.
KEYSTROKES = b"\r\n\x03\x04\x1a\x1b\x1broot\r\n\r\nid; echo shell-$((6*7))\r\n"
# The console text if an attempt succeeded: prompts, and the output of the last command.
_PROMPTS = re.compile(
    r"login:|Password:|\(initramfs\)|shell-42|uid=0|[#$] $|Press Enter|Give root password|grub>|Shell>", re.MULTILINE
)
_LOOP_SAMPLES = 50


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

    def wait_dead_loop(self, seconds: float) -> int:
        """The address at which the vCPU loops; fails if ``seconds`` pass before."""
        deadline = time.monotonic() + seconds
        seen: list[int] = []
        while time.monotonic() < deadline:
            time.sleep(0.05)
            seen.append(self.instruction())
            # Timer interrupts still arrive, so some samples are elsewhere.
            address, count = Counter(seen[-_LOOP_SAMPLES:]).most_common(1)[0]
            if count > _LOOP_SAMPLES * 3 // 4:
                return address
        raise AssertionError(f"no dead loop in {seconds:.0f} s, last instructions at {[hex(one) for one in seen[-9:]]}")

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
