# SPDX-License-Identifier: Apache-2.0
"""How far a guest has booted, by its serial console. The host writes that log, so nothing is decided by it."""

import re
from pathlib import Path

MARKER = "Booting dm-verity filesystem.."
WAITING = "init: waiting for the disk key"
SWITCHING = "init: switching"
# Lines of the console in the order in which a boot writes them, and how far it is with each.
_BOOT = (
    ("Linux version", "the kernel"),
    ("init: mode", "init"),
    (MARKER, "the verified root"),
    (WAITING, "the disk key"),
    (SWITCHING, "the guest's services"),
)
# Control sequences of terminals (ECMA-48), which firmware and systemd write, and other control characters but newlines.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def boot_stage(console: str) -> str:
    """How far a guest with this console log has booted: the firmware until there is more."""
    return next((stage for line, stage in reversed(_BOOT) if line in console), "the firmware")


def read_console(path: Path) -> str:
    """A console log as text; empty where there is none yet."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def printable_lines(text: str) -> list[str]:
    """The lines of a log without anything that a terminal would obey; a line that was drawn over counts as drawn."""
    return [_CONTROL.sub("", line) for line in text.replace("\r\n", "\n").split("\n")]
