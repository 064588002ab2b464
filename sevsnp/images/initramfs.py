"""The initramfs in layers: separately compressed cpio archives that the kernel unpacks one over the other.

Base packages seldom change, modules change with the kernel, init changes all the time; the initramfs is their
concatenation, so that an edit of init rebuilds a few kilobytes.
"""

import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from sevsnp.command import environment
from sevsnp.errors import UserError
from sevsnp.files import CHUNK
from sevsnp.images.cpio import Content, Entry, directory, regular, symlink, with_parents, write_cpio
from sevsnp.images.kernel_modules import ModuleTree
from sevsnp.images.lists import layer_files, read_files_list, read_list

# Decompression time does not depend on the level, and the guest pays for size by hashing it in the firmware.
_LEVEL = 15
_MERGED = ("bin", "sbin", "lib", "lib64")


def make_base_layer(*, manifest: Path, files: Path, output: Path) -> None:
    """The files of the base packages, unpacked only (no maintainer script runs), less what ``exclude`` matches.

    ``manifest`` lies beside the packages; ``files`` is files.yaml.
    """
    exclude = read_files_list(files).get("exclude", [])
    entries = [symlink(name, f"usr/{name}") for name in _MERGED]
    entries += [directory("usr/lib64"), directory("usr/sbin"), directory("usr/bin"), directory("usr/lib")]
    spool = output.with_suffix(".spool")
    try:
        with spool.open("wb") as stream:
            for deb in sorted(manifest.parent.glob("*.deb")):
                entries += _deb_entries(deb, exclude, stream, spool)
        _write_layer(with_parents(entries), output)
    finally:
        spool.unlink(missing_ok=True)


def _deb_entries(deb: Path, exclude: Sequence[str], spool: BinaryIO, spool_path: Path) -> list[Entry]:
    """The members of a package; file contents go to the spool, so that archives can be sorted without unpacking."""
    process = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment()
    )
    assert process.stdout is not None
    entries: list[Entry] = []
    contents: dict[str, Entry] = {}
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                name = _merged(member.name.removeprefix("./").rstrip("/"))
                if name in ("", ".", *_MERGED) or any(fnmatch(name, pattern) for pattern in exclude):
                    continue
                entry = _entry(member, name, archive, contents, spool, spool_path)
                contents[name] = entry
                entries.append(entry)
    except tarfile.TarError as error:
        raise UserError(f"{deb}: not a Debian package: {error}") from error
    finally:
        process.stdout.close()
        code = process.wait(timeout=60)
    if code:
        raise UserError(f"{deb}: dpkg-deb failed with exit code {code}")
    return entries


def _merged(name: str) -> str:
    """A path on the merged-/usr layout, where /bin, /sbin and /lib* are links into /usr."""
    return f"usr/{name}" if name.split("/")[0] in _MERGED and "/" in name else name


def _entry(
    member: tarfile.TarInfo,
    name: str,
    archive: tarfile.TarFile,
    contents: Mapping[str, Entry],
    spool: BinaryIO,
    spool_path: Path,
) -> Entry:
    mode, owner = member.mode & 0o7777, {"uid": member.uid, "gid": member.gid}
    if member.isdir():
        return Entry(name, stat.S_IFDIR | mode, **owner)
    if member.issym():
        return Entry(name, stat.S_IFLNK | 0o777, member.linkname.encode(), **owner)
    if member.islnk():
        # A hard link becomes a copy of what it names; there are next to none, and cpio's own are easy to get wrong.
        target = contents[_merged(member.linkname.removeprefix("./"))]
        return Entry(name, target.mode, target.data, **owner)
    if not member.isreg():
        raise UserError(f"{name}: found a device or pipe in a package, expected files, directories and links")
    offset = spool.tell()
    shutil.copyfileobj(cast(BinaryIO, archive.extractfile(member)), spool, CHUNK)
    return Entry(name, stat.S_IFREG | mode, Content(spool_path, offset, member.size), **owner)


def make_modules_layer(*, version: Path, modules: Path, layer: str, output: Path) -> None:
    """The modules that ``modules`` lists under ``layer``, with their dependencies, decompressed, and the order to load.

    ``version`` is the file in the unpacked kernel that names its release; the modules are beside it.
    """
    release = version.read_text().strip()
    tree = ModuleTree(version.parent / "lib" / "modules" / release)
    lists = read_list(modules, "base", "emulated")
    found = tree.closure(lists["base"], f"{modules}: base")
    if layer != "base":
        found = {k: v for k, v in tree.closure(lists[layer], f"{modules}: {layer}").items() if k not in found}
    place = "usr/lib/sevsnp/modules"
    entries = [regular(f"{place}/{name}.ko", image) for name, image in found.items()]
    order = "".join(f"/{place}/{name}.ko\n" for name in found)
    entries.append(regular(f"{place}/{layer}.list", order.encode()))
    _write_layer(with_parents(entries), output)


def make_files_layer(*, files: Path, sources: Sequence[Path], layer: str, output: Path) -> None:
    """Our own files, as ``files`` (files.yaml) lists them under ``layer``; ``sources`` are those files, in order."""
    entries = [directory(name) for name in read_files_list(files).get("directories", []) if layer in ("init", "plain")]
    for item, source in zip(layer_files(files, layer), sources, strict=True):
        entries.append(regular(item["path"], source.read_bytes(), int(str(item.get("mode", "0644")), 8)))
    _write_layer(with_parents(entries), output)


def join_layers(*, layers: Sequence[Path], output: Path) -> None:
    """Concatenate layers; the kernel unpacks them in order, later files over earlier ones."""
    with output.open("wb") as stream:
        for layer in layers:
            with layer.open("rb") as source:
                shutil.copyfileobj(source, stream, CHUNK)
            # The kernel looks for the next archive at a multiple of four bytes.
            stream.write(b"\0" * (-stream.tell() % 4))


def _write_layer(entries: Iterable[Entry], output: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=False)
    with output.open("wb") as raw, compressor.stream_writer(raw, closefd=False) as stream:
        write_cpio(entries, cast(BinaryIO, stream))
