# SPDX-License-Identifier: Apache-2.0
"""Finds kernel modules by name in an unpacked kernel package, with all dependencies, in loading order.

A kernel package has no modules.dep (depmod makes it at installation), so dependencies are read from the same place as
depmod reads them: the ``depends=`` entry of each module's .modinfo section.
"""

import lzma
import struct
from collections.abc import Iterable
from pathlib import Path

import zstandard

from sevsnp.errors import UserError
from sevsnp.images.kernel_needs import missing_module

_SIGNED = b"~Module signature appended~\n"  # MODULE_SIG_STRING of linux/module_signature.h
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst")


def _normal(name: str) -> str:
    return name.replace("-", "_")


def read_module(path: Path) -> bytes:
    """A module's ELF image, decompressed; the signature at its end is kept."""
    data = path.read_bytes()
    try:
        if path.name.endswith(".xz"):
            return lzma.decompress(data)
        if path.name.endswith(".zst"):
            stream = zstandard.ZstdDecompressor().decompressobj()
            image = stream.decompress(data)
            if not stream.eof:
                raise zstandard.ZstdError("the compressed data ends early")
            return image
    except (lzma.LZMAError, zstandard.ZstdError) as error:
        raise UserError(f"{path}: not a compressed kernel module: {error}") from error
    return data


def modinfo(image: bytes, path: Path) -> dict[str, str]:
    """The ``key=value`` strings of an ELF64 module's .modinfo section (the last one wins)."""
    try:
        if image[:5] != b"\x7fELF\x02":
            raise ValueError("not a 64-bit ELF file")
        (section_offset,) = struct.unpack_from("<Q", image, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", image, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", image, section_offset + size * i) for i in range(count)]
        names = image[headers[names_index][4] :]
        for name, _, _, _, offset, length in headers:
            if names[name : names.index(b"\0", name)] == b".modinfo":
                entries = image[offset : offset + length].decode(errors="replace").split("\0")
                return dict(entry.split("=", 1) for entry in entries if "=" in entry)
        raise ValueError("no .modinfo section")
    except (struct.error, IndexError, ValueError) as error:
        raise UserError(f"{path}: not a kernel module: {error}") from error


class ModuleTree:
    """lib/modules/VERSION of an unpacked kernel package."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, Path] = {}
        for path in sorted(directory.rglob("*.ko*")):
            if path.name.endswith(_SUFFIXES):
                self.files[_normal(path.name.split(".ko")[0])] = path
        builtin = directory / "modules.builtin"
        if not self.files or not builtin.exists():
            raise UserError(f"{directory}: no kernel modules here", "run: ./doitw unpack_kernel")
        self.builtin = {_normal(Path(line).stem) for line in builtin.read_text().split()}

    def closure(self, names: Iterable[str], source: str) -> dict[str, bytes]:
        """The images of the named modules and of all their dependencies, by name, dependencies first.

        Built-in modules need nothing. ``source`` is the list that names them, for the error message.
        """
        found: dict[str, bytes] = {}

        def add(name: str, asked_by: str, above: tuple[str, ...] = ()) -> None:
            name = _normal(name)
            if name in found or name in self.builtin:
                return
            if name in above:
                raise UserError(f"{self.directory}: modules need each other: {', '.join((*above, name))}")
            if name not in self.files:
                release = self.directory.name
                raise UserError(f"{asked_by}: no module {name} in {release}{missing_module(name, release)}")
            image = read_module(self.files[name])
            if not image.endswith(_SIGNED):
                raise UserError(
                    f"{self.files[name]}: not signed: a measured guest's kernel takes signed modules only",
                    "build the kernel with CONFIG_MODULE_SIG_ALL=y",
                )
            for dependency in filter(None, modinfo(image, self.files[name]).get("depends", "").split(",")):
                add(dependency, name, (*above, name))
            found[name] = image

        for name in names:
            add(name, source)
        return found
