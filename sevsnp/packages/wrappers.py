# SPDX-License-Identifier: Apache-2.0
"""Shell wrappers that run a tree's programs with the tree's own loader and libraries, wherever the tree is."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class Program:
    """A program of the tree: its path, and the words and variables that it needs to find the tree's data.

    ``words`` come before the user's; in them and in ``variables``, ``{root}`` is the tree. With ``self_name`` the
    program takes the wrapper for its own path: a program that starts "itself" then starts the wrapper again.
    """

    path: str
    words: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    self_name: bool = False


# The compiled-in paths point to the host, whose configuration and modules have other versions.
_OPENSSL = {"OPENSSL_CONF": "/dev/null", "OPENSSL_MODULES": f"{{root}}/{LIBRARIES}/ossl-modules"}
# mke2fs.conf decides features and inode sizes: the host's file would make images differ from host to host.
_E2FS = {"MKE2FS_CONFIG": "{root}/etc/mke2fs.conf"}
_MTOOLS = {"GCONV_PATH": f"{{root}}/{LIBRARIES}/gconv"}

PROGRAMS: Mapping[str, Program] = {
    "qemu-system-x86_64": Program(
        "usr/bin/qemu-system-x86_64",
        ("-L", "{root}/usr/share/qemu", "-L", "{root}/usr/share/seabios"),
        {"QEMU_MODULE_DIR": f"{{root}}/{LIBRARIES}/qemu"},
    ),
    "qemu-img": Program("usr/bin/qemu-img"),
    "mke2fs": Program("usr/sbin/mke2fs", variables=_E2FS),
    "e2fsck": Program("usr/sbin/e2fsck"),
    "debugfs": Program("usr/sbin/debugfs"),
    "dumpe2fs": Program("usr/sbin/dumpe2fs"),
    "resize2fs": Program("usr/sbin/resize2fs"),
    "veritysetup": Program("usr/sbin/veritysetup", variables=_OPENSSL),
    "cryptsetup": Program("usr/sbin/cryptsetup", variables=_OPENSSL),
    "dmsetup": Program("usr/sbin/dmsetup"),
    "depmod": Program("usr/sbin/depmod"),
    "mkfs.erofs": Program("usr/bin/mkfs.erofs"),
    "fsck.erofs": Program("usr/bin/fsck.erofs"),
    "dump.erofs": Program("usr/bin/dump.erofs"),
    **{name: Program(f"usr/bin/{name}", variables=_MTOOLS) for name in ("mcopy", "mdir", "mformat", "mmd", "mtype")},
    # The compiler of the stage's code, which includes no header.
    "cc1": Program("usr/libexec/gcc/x86_64-linux-gnu/14/cc1"),
    **{name: Program(f"usr/bin/{name}") for name in (f"x86_64-linux-gnu-{one}" for one in ("as", "ld", "objcopy"))},
    # No PYTHONHOME: it would reach every other python that this one starts. python3 finds the tree's lib beside the
    # wrapper's path. The legacy provider is not needed, and the host's would be loaded.
    "python3": Program("usr/bin/python3", ("-s", "-B"), {"CRYPTOGRAPHY_OPENSSL_NO_LEGACY": "1"}, self_name=True),
}

_TEMPLATE = """\
#!/bin/sh
# {name}, from the packages named in ../packages.json, with their own loader and libraries.
set -eu
root=$(readlink -f "$0")
root=${{root%/bin/*}}
# --library-path, unlike LD_LIBRARY_PATH, is not handed on to what {name} starts.
unset {unset}
{export}exec "$root/{loader}" --inhibit-cache --library-path "$root/{libraries}" \\
    {argv0}"$root/{path}" {words}"$@"
"""


def _quoted(text: str) -> str:
    return f'"{text.replace("{root}", "$root")}"' if "{root}" in text else shlex.quote(text)


def wrapper_text(name: str, program: Program) -> str:
    """The shell script that runs ``program``; it is relocatable, and it may be called through a symbolic link."""
    unset = ["LD_LIBRARY_PATH", "LD_PRELOAD"]
    if name == "python3":
        unset += ["PYTHONHOME"]
    return _TEMPLATE.format(
        name=name,
        unset=" ".join(unset),
        export="".join(f"export {key}={_quoted(value)}\n" for key, value in program.variables.items()),
        loader=LOADER,
        libraries=LIBRARIES,
        argv0=f'--argv0 "$root/bin/{name}" ' if program.self_name else "",
        path=program.path,
        words="".join(f"{_quoted(word)} " for word in program.words),
    )


def write_wrappers(tree: Path) -> tuple[str, ...]:
    """Write ``tree``/bin/NAME for every known program that the tree has; return their names."""
    directory = tree / "bin"
    directory.mkdir()
    directory.chmod(0o755)
    written = []
    for name, program in PROGRAMS.items():
        if (tree / program.path).exists():
            file = directory / name
            file.write_text(wrapper_text(name, program))
            file.chmod(0o755)
            written.append(name)
    return tuple(written)
