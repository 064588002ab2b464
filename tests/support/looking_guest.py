# SPDX-License-Identifier: Apache-2.0
"""A guest whose init only says what machine it sees, and then powers off: a boot without disks, for tests of the host.

It is measured as every guest is: the genuine firmware, kernel and command line, and an initramfs with one file more.
"""

import json
from pathlib import Path
from typing import Any

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import text_entry
from sevsnp.images.initramfs import join_layers
from sevsnp.vm_config.config import VmConfig
from tests.support.configs import file, honest
from tests.support.firmware_machine import Watched

_BEGIN, _END = "SEEN ", " SEEN"
_INIT = f"""\
#!/usr/bin/python3 -ISB
import glob, hashlib, json, os, re, sys, time
sys.path.insert(0, "/usr/lib/sevsnp")
import linux

def tables():
    root = "/sys/firmware/acpi/tables"
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    for name in names:
        if os.path.isfile(f"{{root}}/{{name}}"):
            with open(f"{{root}}/{{name}}", "rb") as stream:
                yield name, hashlib.sha256(stream.read()).hexdigest()

def timers():
    return [int(word) for word in re.search("LOC:((?: +[0-9]+)+)", linux.read("/proc/interrupts"))[1].split()]

def seen():
    for name in ("proc", "sysfs", "devtmpfs"):
        linux.mount(name, {{"sysfs": "/sys", "devtmpfs": "/dev"}}.get(name, "/proc"), name)
    before = timers()
    time.sleep(1)
    return {{
        "online": linux.read("/sys/devices/system/cpu/online").strip(),
        "possible": linux.read("/sys/devices/system/cpu/possible").strip(),
        "tables": dict(tables()),
        "buses": sorted({{one[:7] for one in os.listdir("/sys/bus/pci/devices")}}),
        "memory_devices": len(glob.glob("/sys/bus/acpi/devices/PNP0C80:*")),
        "timers": [after > early for early, after in zip(before, timers())],
        "clock": linux.read("/sys/devices/system/clocksource/clocksource0/current_clocksource").strip(),
    }}

try:
    found = seen()
except BaseException as error:
    found = {{"error": repr(error)}}
print({_BEGIN!r} + json.dumps(found) + {_END!r}, flush=True)
linux.stop("acpi=off" not in linux.read("/proc/cmdline").split())
"""


def looking(config: VmConfig, directory: Path) -> VmConfig:
    """The guest of ``config`` with that init: a complete and consistent config in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    layer, initrd = directory / "look.cpio", directory / "look.initramfs"
    with layer.open("wb") as stream:
        write_cpio(with_parents([text_entry("init", _INIT, 0o755)]), stream)
    join_layers(layers=[config.launch.initrd.path, layer], output=initrd)
    return honest(config, directory, initrd=file(initrd))


def seen(machine: Watched) -> dict[str, Any]:
    """What the guest says that it sees; it powers off after that."""
    log = machine.guest.wait_for(_END)
    found: dict[str, Any] = json.loads(log.partition(_BEGIN)[2].partition(_END)[0])
    assert "error" not in found, found
    return found
