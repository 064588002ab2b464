# SPDX-License-Identifier: Apache-2.0
"""The machine that a root's programs are for, by the ELF headers of its init and its SSH server (ELF specification)."""

import struct

from sevsnp.archives.tar import Content, Entry
from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError

INITS = ("sbin/init", "usr/sbin/init", "usr/bin/init")
_PROGRAMS = ("usr/sbin/sshd", "usr/bin/sshd", "sbin/sshd")
# e_machine of the programs that an x86-64 kernel runs: x86-64, and i386, which it runs as compatible.
_RUN = {62, 3}
_NAMES = {
    2: "SPARC", 3: "i386", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "s390x", 40: "ARM (32 bits)", 43: "SPARC64",
    62: "x86-64", 183: "ARM64 (aarch64)", 243: "RISC-V", 258: "LoongArch",
}  # fmt: skip
_DEEPEST = 4


def check_architecture(tree: Tree, name: str) -> None:
    """Raises UserError if the init of the root ``name``, its interpreter, or its SSH server is for another machine."""
    for path in (*(path for path in INITS if tree.has(path)), *_PROGRAMS):
        program = _program(tree, path)
        if program is None or program.content is None or program.content.size < 20:
            continue
        machine = machine_of(_start(program.content))
        if machine is not None and machine not in _RUN:
            what = _NAMES.get(machine, f"machine {machine}")
            raise UserError(
                f"{name}: /{program.name} is a program for {what}, expected x86-64",
                "give the image of this system for x86-64 (amd64)",
            )


def machine_of(start: bytes) -> int | None:
    """e_machine of an ELF file, from its first 20 bytes; None for any other file."""
    if start[:4] != b"\x7fELF" or len(start) < 20:
        return None
    order = ">" if start[5] == 2 else "<"
    return int(struct.unpack_from(f"{order}H", start, 18)[0])


def _program(tree: Tree, path: str) -> Entry | None:
    """The program at ``path``; for a script, its interpreter."""
    for _ in range(_DEEPEST):
        entry = tree.find(path)
        if entry is None or entry.content is None:
            return entry
        start = _start(entry.content)
        words = start[2:].split(b"\n", 1)[0].split() if start[:2] == b"#!" else []
        if not words:
            return entry
        path = words[0].decode("utf-8", "surrogateescape").strip("/")
    return None


def _start(content: Content) -> bytes:
    return next(iter(content.pieces()), b"")[:256]
