# SPDX-License-Identifier: Apache-2.0
"""What a running guest has open towards its host, as lists that are compared with tests/data/guest-contract.yaml."""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from sevsnp.system.yaml_loader import dump, load
from tests.support.hostile_devices import BOUND

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "guest-contract.yaml"
Contract = dict[str, list[str]]

_SYSCTLS = (
    *("kernel.kexec_load_disabled", "kernel.modules_disabled", "kernel.panic", "kernel.panic_on_oops"),
    *("kernel.sysrq", "kernel.unprivileged_bpf_disabled"),
)
# A shell command for each list, to be run by root.
_QUESTIONS = {
    "ioports": "cat /proc/ioports",
    "modules": "cut -d' ' -f1 /proc/modules | sort",
    "acpi_tables": "find /sys/firmware/acpi/tables -type f -printf '%P\\n' | sort",
    "drivers": f"{BOUND} | sort | uniq -c | sed 's/^ *//'",
    "autoprobe": "cat /sys/bus/*/drivers_autoprobe | sort -u",
    "firmware": "ls /sys/firmware",
    "words": "tr ' ' '\\n' </proc/cmdline | grep -v -e ^initrd= -e ^sevsnp[.]",
    "sysctls": f"sysctl {' '.join(_SYSCTLS)}",
    "lockdown": "cat /sys/kernel/security/lockdown",
    "randomness": "cat /sys/class/misc/hw_random/rng_current",
}
# Programs that read the kernel's memory, or reach it in a way that the host could force upon them.
_PROBES = {
    "kcore": "head -c 4 /proc/kcore | od -An -c",
    "int80": (
        'python3 -c "import ctypes, mmap; page = mmap.mmap(-1, 4096, prot=7); '
        "page.write(bytes.fromhex('b814000000cd80c3')); "  # mov eax, 20 (getpid); int 0x80; ret
        "print('a number:', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))() > 0)\""
    ),
}


def _ask(run: Callable[[str], str], questions: Mapping[str, str]) -> Contract:
    script = "".join(f"echo '== {name}'\n{{ {question}; }} 2>/dev/null\n" for name, question in questions.items())
    output = run(f"sudo sh -s <<'END'\n{script}echo '== end'\nEND")
    found = re.findall(r"^== (\S+)\n(.*?)(?=^== )", output, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in found] == list(questions), output
    return {name: [line.rstrip() for line in text.splitlines()] for name, text in found}


def found_contract(run: Callable[[str], str]) -> Contract:
    """The lists of a guest in which ``run`` executes a shell command as a user with sudo, and returns its output."""
    return _ask(run, _QUESTIONS)


def found_doors(run: Callable[[str], str]) -> set[str]:
    """The names of the probes that succeed in the guest."""
    return {name for name, lines in _ask(run, _PROBES).items() if lines}


def golden(kind: str) -> Contract:
    """The lists that are written down for this kind of guest: what differs is listed under its name."""
    document = load(GOLDEN)
    return {**document["production"], **(document[kind] if kind != "production" else {})}


def check_contract(kind: str, found: Contract) -> None:
    expected, got = (dump(one).splitlines() for one in (golden(kind), found))
    changes = list(
        difflib.unified_diff(expected, got, f"{GOLDEN.name} ({kind})", "the running guest", lineterm="", n=1)
    )
    assert not changes, "\n".join(changes)
