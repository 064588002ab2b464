# SPDX-License-Identifier: Apache-2.0
"""The options that may be chosen for each run of a guest.

A module apart from the one that starts QEMU: doit makes such options for each launching task, in every command.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sevsnp.qemu.blocks import BlockFile


@dataclass(frozen=True)
class RunOptions:
    """Values that are free at launch because nothing measures them. ``memory`` is in bytes; ports are at 127.0.0.1.

    ``state`` is the directory for logs and, under emulation, the platform's certificates. ``restricted`` limits the
    guest's network to the forwarded ports. ``terminal`` shows the serial console here as well as in its log; otherwise
    it is available at the listening socket ``console``, a file descriptor. If a port in ``movable`` (SSH_PORT,
    ATTEST_PORT) is in use, the next free one is taken. ``forwards`` are further
    ports here, each with the guest's port that it leads to. ``disks`` are the guest's disks beside those of its VM
    config.
    ``extra`` are the user's own QEMU options. The files that these need are unknown here, so QEMU may then open every
    file that its user may open.
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
    forwards: tuple[tuple[int, int], ...] = ()

    @property
    def inherited(self) -> tuple[int, ...]:
        """The file descriptors that QEMU's arguments name."""
        return () if self.console is None else (self.console,)

    @property
    def serial_log(self) -> Path:
        """The log of the guest's serial console."""
        return self.state / "serial.log"

    @property
    def messages(self) -> Path:
        """The log of QEMU's own messages."""
        return self.state / "qemu.log"
