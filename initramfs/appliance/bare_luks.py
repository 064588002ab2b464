# SPDX-License-Identifier: Apache-2.0
"""Writes a volume with cryptsetup and dd alone, to measure its cost. For bench; not in the project's own initramfs."""

from collections.abc import Callable
from typing import Any

import linux
from appliance.luks import MAPPING, NAME, cryptsetup

MODULES = ("luks",)


def run(job: "dict[str, Any]", secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    source, target = linux.find_disks("source", "luks")
    cryptsetup("luksFormat", *job["format"], "--key-file=-", target, secret=secret)
    cryptsetup("open", "--integrity-no-journal", "--key-file=-", target, NAME, secret=secret)
    linux.run(
        "/usr/bin/busybox", "dd", f"if={source}", f"of={MAPPING}", "bs=4M", "iflag=direct", "oflag=direct", "conv=fsync"
    )
    cryptsetup("close", NAME)
    return {}
