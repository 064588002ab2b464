# SPDX-License-Identifier: Apache-2.0
"""What a run on an SEV-SNP machine leaves to be sent: one archive with results, evidence, logs and facts of the host.

Only files with known names are packed. Each is searched for private keys first, and with one in it nothing is packed.
"""

import base64
import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sevsnp.archives.rootfs import text_entry
from sevsnp.archives.tar import Entry
from sevsnp.archives.tar_writer import write_tar
from sevsnp.errors import UserError
from sevsnp.keys.luks_key import read_key_file
from sevsnp.system.files import scratch_directory

RESULTS, FAILURE, HOST = "e2e.json", "failure.txt", "host.json"
# Of each workflow: the attestation and the logs of guest and QEMU. ssh_config and known_hosts name the user's files.
RECORDED = (
    "evidence.json", "attestation_report.bin", "verdict.json", "verdict.html", "host_keys.pub",
    "serial.log", "qemu.log",
)  # fmt: skip
TOP = "hardware-test"
# Bytes of a file that are packed; of a longer log, its end.
_MOST = 16 << 20
# A form of a key that is not longer may be anywhere by chance.
_SHORT = 8
# A PEM header, and the first bytes of an OpenSSH key as they are and in base64.
_PRIVATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----|openssh-key-v1\0|b3BlbnNzaC1rZXktdjE")
# The lines of /proc/cpuinfo that name the processor and its microcode.
_CPU = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode")


def host_facts(qemu_version: str, root: Path = Path("/")) -> dict[str, Any]:
    """Kernel, processor, parameters of kvm_amd, and QEMU of this machine, which has ``root`` as its root directory."""
    cpu: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() in _CPU:
            cpu.setdefault(name.strip(), value.strip())
    parameters = root / "sys/module/kvm_amd/parameters"
    return {
        "kernel": _text(root / "proc/sys/kernel/osrelease").strip(),
        "cpu": cpu,
        "kvm_amd": {path.name: _text(path).strip() for path in sorted(parameters.glob("*"))},
        "qemu": qemu_version,
    }


def _text(path: Path) -> str:
    """A small file's text; empty if it cannot be read, as some parameters."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def recorded_files(record: Path, configs: Iterable[Path], checked: Path) -> Iterator[tuple[str, Path]]:
    """The files to send, each with its name in the archive; those that a run did not write are left out.

    ``record`` has the results and a directory for each workflow in ``run``, ``configs`` are the VM configs, and
    ``checked`` is what check_host has found about the host.
    """
    named = [(name, record / name) for name in (RESULTS, FAILURE, HOST)]
    named += [("check_host.json", checked), *((path.name, path) for path in configs)]
    for directory, folders, files in os.walk(record / "run"):
        folders.sort()
        place = Path(directory)
        named += [(str((place / name).relative_to(record)), place / name) for name in sorted(files) if name in RECORDED]
    for name, path in named:
        if path.is_file() and not path.is_symlink():
            yield name, path


def pack_record(files: Iterable[tuple[str, Path]], keys: Iterable[Path], output: Path) -> Sequence[str]:
    """Pack ``files`` into ``output`` (.tar.gz), and return their names. Times and owners in it are 0.

    ``keys`` are files with keys, whose content must not be in any of ``files``. Raises :class:`UserError` that names
    the file with a key; then ``output`` is not written.
    """
    secrets = {path: read_key_file(path) for path in keys if path.is_file()}
    entries: list[Entry] = []
    for name, path in files:
        data = _end_of(path)
        if found := _key_in(data, secrets):
            raise UserError(f"{path}: found {found} in it, so nothing was packed")
        entries.append(text_entry(f"{TOP}/{name}", data))
    with scratch_directory(output) as scratch:
        plain, packed = scratch / "plain.tar", scratch / output.name
        write_tar(entries, plain, epoch=0)
        with packed.open("wb") as stream, gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as zipped:
            zipped.write(plain.read_bytes())
        packed.chmod(0o600)  # logs and evidence are for those to whom the user sends them
        packed.replace(output)
    return [name.name for name in entries]


def _end_of(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _MOST))
        return stream.read(_MOST)


def _key_in(data: bytes, secrets: Mapping[Path, bytes]) -> str:
    """What private key is in ``data``; empty if none is."""
    if _PRIVATE.search(data):
        return "a private key"
    for path, secret in secrets.items():
        if any(len(form) > _SHORT and form in data for form in _forms(secret)):
            return f"the key of {path}"
    return ""


def _forms(secret: bytes) -> Iterator[bytes]:
    """The secret as it is, in hex, and in base64 at each alignment, without the ends that depend on its neighbours."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret)
        yield encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4]


def facts_text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2) + "\n"
