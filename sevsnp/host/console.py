# SPDX-License-Identifier: Apache-2.0
"""How far a guest has booted, by its serial console. The host writes that log, so no decision depends on it."""

import re
from pathlib import Path

MARKER = "Booting dm-verity filesystem.."
WAITING = "init: waiting for the disk key"
SWITCHING = "init: switching"
_LONGEST = 500
# Lines of the console in the order of a boot, and the stage that each begins.
_BOOT = (
    ("Linux version", "the kernel"),
    ("init: mode", "init"),
    (MARKER, "the verified root"),
    (WAITING, "the disk key"),
    (SWITCHING, "the guest's services"),
)
# The end of a boot that init refuses to continue, or that the kernel gives up. Only a guest that panics ends so later.
_FATAL = re.compile(r"^(?:\[[ 0-9.]+\] )?(init: FATAL: .*|Kernel panic - not syncing: .*)$", re.MULTILINE)
# Control sequences of terminals (ECMA-48), which firmware and systemd write, and control characters except newlines.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def boot_stage(console: str) -> str:
    """The boot stage of a guest with this console log; it is the firmware until a later stage's line appears."""
    return next((stage for line, stage in reversed(_BOOT) if line in console), "the firmware")


def boot_failure(console: str) -> str:
    """The line with which a boot failed, or with which the kernel panicked; empty if there is none.

    Once the guest's own services run, a line of init's is theirs and does not count.
    """
    text = "\n".join(printable_lines(console))
    services = text.find(f"\n{SWITCHING}")
    for found in _FATAL.finditer(text):
        if services < 0 or found.start() < services or found[1].startswith("Kernel"):
            return found[1].strip()[:_LONGEST]
    return ""


def read_console(path: Path) -> str:
    """A console log as text; empty if there is no log yet."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def printable_lines(text: str) -> list[str]:
    """The lines of a log without control sequences. Text that a terminal would overwrite stays in its line."""
    return [_CONTROL.sub("", line) for line in text.replace("\r\n", "\n").split("\n")]
