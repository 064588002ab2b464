# SPDX-License-Identifier: Apache-2.0
"""What may be chosen for each run of a guest.

Apart from what starts QEMU: whatever doit is asked to do, it makes one of these for each task that launches a guest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sevsnp.qemu.blocks import BlockFile


@dataclass(frozen=True)
class RunOptions:
    """What is free at launch because nothing measures it. ``memory`` in bytes; ports at 127.0.0.1 of this machine.

    ``state`` is the directory for logs and, under emulation, the platform's certificates. ``restricted`` cuts the guest
    off from everything but the forwarded ports; ``terminal`` shows the serial console here as well as in its log, else
    it may be had from the listening socket ``console``, a file descriptor. In place of a port in ``movable`` (SSH_PORT,
    ATTEST_PORT) the next free one is taken where it is in use.
    ``disks`` are the guest's beside those of its VM config. ``extra`` are QEMU options of a user's own; since nobody
    here knows which files they need, QEMU may then open all that its user may.
    """

    qemu: Path
    memory: int
    ssh_port: int
    attest_port: int
    state: Path
    restricted: bool = False
    terminal: bool = False
    disks: tuple["BlockFile", ...] = ()
    extra: tuple[str, ...] = ()
    console: int | None = None
    movable: tuple[str, ...] = ()

    @property
    def inherited(self) -> tuple[int, ...]:
        """The file descriptors that QEMU's arguments name."""
        return () if self.console is None else (self.console,)

    @property
    def serial_log(self) -> Path:
        """What the guest wrote to its serial console."""
        return self.state / "serial.log"

    @property
    def messages(self) -> Path:
        """What QEMU itself had to say."""
        return self.state / "qemu.log"
