# SPDX-License-Identifier: Apache-2.0
"""The kernel's own messages about a step that failed: they have the reason that an error number does not."""

import os

_LONGEST = 8192
_WARNING = 4  # log level
_MOST, _LETTERS = 3, 300


class KernelLog:
    """The kernel's messages from now on."""

    def __init__(self) -> None:
        self._stream = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._stream, 0, os.SEEK_END)

    def close(self) -> None:
        """End it."""
        os.close(self._stream)

    def said(self) -> str:
        """The last warnings and errors since then, in one line; empty if there are none."""
        lines: dict[str, None] = {}
        while True:
            try:
                text = os.read(self._stream, _LONGEST).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:  # some were overwritten: the next read has what is left
                continue
            line = warning(text)
            if line:
                lines[line] = None
        return "; ".join(list(lines)[-_MOST:])[:_LETTERS]


def warning(record: str) -> str:
    """The text of a record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg) that is a warning or worse, else empty."""
    head, semicolon, text = record.partition(";")
    level = head.partition(",")[0]
    return text.partition("\n")[0].strip() if semicolon and level.isdigit() and int(level) <= _WARNING else ""
