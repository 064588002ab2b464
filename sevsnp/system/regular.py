# SPDX-License-Identifier: Apache-2.0
"""Opens files that others name. Standard library only: the software secure processor and host bundles have it too."""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[io.BufferedReader]:
    """A regular file, opened for reading. Raises OSError for any other: a pipe would wait, and a device may not end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield stream
