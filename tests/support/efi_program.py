# SPDX-License-Identifier: Apache-2.0
"""EFI programs of a host, made byte by byte, and the forms in which a host can offer them: a file, a card's ROM.

Each prints a mark on the first serial port (16550 at 0x3f8) when it runs. Sources: PE format, Microsoft's
specification; UEFI 2.10, 4.3 (system table), 4.4 (boot services), 7.4 (images), 13.1 (load file), 14.4.2 (ROMs in
cards).
"""

import struct
from collections.abc import Mapping
from uuid import UUID

_ALIGNMENT = 0x1000
_SUBSYSTEM_APPLICATION, _SUBSYSTEM_DRIVER = 10, 11
SUCCESS, NOT_FOUND = 0, 0x800000000000000E
_BLOCK = 512
_ROM = 1 << 16

# rcx is the image's handle, rdx the system table. The caller's values in rbx, rsi, rdi and r12 must be preserved.
_SAY = """
mark: 56            # push rsi
488d35 $text        # lea rsi, [text]
8b0d $text_length   # mov ecx, [text_length]
wait: bafd030000 ec # mov edx, 0x3fd; in al, dx: the line status
a820 74f6           # test al, 0x20; jz wait: until the transmitter is empty
ac baf8030000 ee    # lodsb; mov edx, 0x3f8; out dx, al
e2ed                # loop wait
5e c3               # pop rsi; ret
"""
_SPEAKER = f"""
e8 $mark            # call mark
488b05 $status      # mov rax, [status]
c3                  # ret
{_SAY}
"""
# Starts the kernel that the firmware got from QEMU, with its command line, but with another initrd.
_STARTER = f"""
53 56 57 4154 4883ec48  # push rbx, rsi, rdi, r12; sub rsp, 0x48
4989cc 488b5a60         # mov r12, rcx; mov rbx, [rdx + 0x60]: the boot services
e8 $mark                # call mark
488d0d $load_file2      # lea rcx, [load_file2]
488d05 $initrd_path     # lea rax, [initrd_path]
4889442430              # mov [rsp + 0x30], rax
488d542430 4c8d442438   # lea rdx, [rsp + 0x30]; lea r8, [rsp + 0x38]
ff93b8000000            # call LocateDevicePath: the handle from which the kernel will take its initrd
4885c0 0f85 $end        # test rax, rax; jnz end
488b4c2438              # mov rcx, [rsp + 0x38]
488d15 $load_file2      # lea rdx, [load_file2]
4c8d442430 ff9398000000 # lea r8, [rsp + 0x30]; call HandleProtocol
488b442430              # mov rax, [rsp + 0x30]
488d0d $serve 488908    # lea rcx, [serve]; mov [rax], rcx
31c9 4c89e2             # xor ecx, ecx; mov rdx, r12
4c8d05 $kernel_path     # lea r8, [kernel_path]
4531c9 4c894c2420       # xor r9d, r9d; mov [rsp + 0x20], r9
488d442438 4889442428   # lea rax, [rsp + 0x38]; mov [rsp + 0x28], rax
ff93c8000000            # call LoadImage
4885c0 0f85 $end        # test rax, rax; jnz end
4c89e1                  # mov rcx, r12
488d15 $loaded_image    # lea rdx, [loaded_image]
4c8d442430 ff9398000000 # lea r8, [rsp + 0x30]; call HandleProtocol
488b742430 488b4c2438   # mov rsi, [rsp + 0x30]; mov rcx, [rsp + 0x38]
488d15 $loaded_image    # lea rdx, [loaded_image]
4c8d442430 ff9398000000 # lea r8, [rsp + 0x30]; call HandleProtocol
488b7c2430              # mov rdi, [rsp + 0x30]
8b4630 894730           # mov eax, [rsi + 0x30]; mov [rdi + 0x30], eax: the size of the load options
488b4638 48894738       # mov rax, [rsi + 0x38]; mov [rdi + 0x38], rax: where they are
488b4c2438 31d2 4531c0  # mov rcx, [rsp + 0x38]; xor edx, edx; xor r8d, r8d
ff93d0000000            # call StartImage
end: 4883c448 415c 5f 5e 5b c3 # add rsp, 0x48; pop r12, rdi, rsi, rbx; ret
serve: 488b05 $size     # mov rax, [size]; from here on LoadFile: r9 has the buffer's size, the stack the buffer
488b542428 498b09       # mov rdx, [rsp + 0x28]; mov rcx, [r9]
498901                  # mov [r9], rax
4885d2 0f84 $small      # test rdx, rdx; jz small
4839c1 0f82 $small      # cmp rcx, rax; jb small
56 57 4889d7            # push rsi, rdi; mov rdi, rdx
488d35 $initrd 4889c1   # lea rsi, [initrd]; mov rcx, rax
f3a4 5f 5e 31c0 c3      # rep movsb; pop rdi, rsi; xor eax, eax; ret
small: 48b80500000000000080 c3 # mov rax, EFI_BUFFER_TOO_SMALL; ret
{_SAY}
"""


def _assemble(text: str, data: Mapping[str, bytes]) -> bytes:
    """Machine code from hex digits: ``name:`` is a label, ``$name`` the distance to it; ``data`` follow the code."""
    code, places, gaps = bytearray(), dict[str, int](), list[tuple[int, str]]()
    for word in (word for line in text.splitlines() for word in line.partition("#")[0].split()):
        if word.endswith(":"):
            places[word[:-1]] = len(code)
        elif word.startswith("$"):
            gaps.append((len(code), word[1:]))
            code += bytes(4)
        else:
            code += bytes.fromhex(word)
    for name, value in data.items():
        code += bytes(-len(code) % 8)
        places[name] = len(code)
        code += value
    for place, name in gaps:
        struct.pack_into("<i", code, place, places[name] - place - 4)
    return bytes(code)


def _portable_executable(code: bytes, subsystem: int) -> bytes:
    """A PE32+ image with one section that is readable, writable and executable, and needs no relocation."""
    length = len(code) + -len(code) % _BLOCK
    memory = _ALIGNMENT + len(code) + -len(code) % _ALIGNMENT
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
        *(0x20B, 1, 0, length, 0, 0, _ALIGNMENT, _ALIGNMENT),  # magic, linker, sizes, entry point, base of code
        *(0, _ALIGNMENT, _BLOCK, 0, 0, 0, 0, 0, 0, 0),  # image base, alignments, versions
        *(memory, _BLOCK, 0, subsystem, 0),  # size of the image and of its headers, checksum
        *(1 << 20, 1 << 12, 1 << 20, 1 << 12, 0, 16),  # stack, heap, number of directories
    ) + bytes(16 * 8)
    # x86-64, one section; flags: executable, large addresses. The debug flag would mark it as not relocatable.
    coff = struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, len(optional), 0x22)
    section = struct.pack("<8sIIIIIIHHI", b".text", len(code), _ALIGNMENT, length, _BLOCK, 0, 0, 0, 0, 0xE0000060)
    header = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0" + coff + optional + section
    return header.ljust(_BLOCK, b"\0") + code.ljust(length, b"\0")


def _said(mark: str) -> dict[str, bytes]:
    text = f"\r\n{mark}\r\n".encode()
    return {"text": text, "text_length": struct.pack("<I", len(text))}


def speaker(mark: str, *, status: int = SUCCESS, driver: bool = False) -> bytes:
    """A program (or a driver) that prints ``mark`` and returns ``status``."""
    code = _assemble(_SPEAKER, {**_said(mark), "status": struct.pack("<Q", status)})
    return _portable_executable(code, _SUBSYSTEM_DRIVER if driver else _SUBSYSTEM_APPLICATION)


def _guid(text: str) -> bytes:
    return UUID(text).bytes_le


def _media_path(vendor: str, name: str = "") -> bytes:
    """A device path: a vendor's media node, a file below it, and the end (UEFI 2.10, 10.3.5)."""
    path = struct.pack("<BBH", 4, 3, 20) + _guid(vendor)
    if name:
        text = f"{name}\0".encode("utf-16-le")
        path += struct.pack("<BBH", 4, 4, 4 + len(text)) + text
    return path + struct.pack("<BBH", 0x7F, 0xFF, 4)


def starter(mark: str, initrd: bytes) -> bytes:
    """A program that prints ``mark`` and starts the genuine kernel with the genuine command line and ``initrd``."""
    data = {
        **_said(mark),
        "load_file2": _guid("4006c0c1-fcb3-403e-996d-4a6c8724e06d"),
        "loaded_image": _guid("5b1b31a1-9562-11d2-8e3f-00a0c969723b"),
        # Linux's device path for its initrd, and QEMU's for the files beside the kernel.
        "initrd_path": _media_path("5568e427-68fc-4f3d-ac74-ca555231cc68"),
        "kernel_path": _media_path("1428f772-b64a-441e-b8c3-9ebdd7f893c7", "kernel"),
        "size": struct.pack("<Q", len(initrd)),
        "initrd": initrd,
    }
    return _portable_executable(_assemble(_STARTER, data), _SUBSYSTEM_APPLICATION)


def card_rom(program: bytes) -> bytes:
    """A PCI expansion ROM with one image, an uncompressed EFI driver (UEFI 2.10, 14.4.2)."""
    start = 0x38
    blocks = -(-(start + len(program)) // _BLOCK)
    header = struct.pack("<HHIHHH8xHH2x", 0xAA55, blocks, 0x0EF1, _SUBSYSTEM_DRIVER, 0x8664, 0, start, 0x1C)
    # For any card; image type 3 is EFI, and 0x80 marks the last image.
    described = struct.pack("<4sHHHHB3xHHBBHHH", b"PCIR", 0xFFFF, 0xFFFF, 0, 0x1C, 3, blocks, 0, 3, 0x80, blocks, 0, 0)
    # Some firmware does not read a smaller one.
    return (header + described + program).ljust(_ROM, b"\0")
