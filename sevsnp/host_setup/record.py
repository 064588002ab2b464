# SPDX-License-Identifier: Apache-2.0
"""Records this machine, in the form that :mod:`sevsnp.host_setup.recorded` reads.

Nothing here judges, and nothing needs root: what this user cannot read is recorded as unreadable, with the reason.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.host_setup import recorded
from sevsnp.host_setup.platform_status import read_status
from sevsnp.system import command
from sevsnp.system.files import remove_tree, scratch_directory, write_atomic

_BOOT = "Linux version"
_CONCERNS = re.compile(
    rf"\b{_BOOT}|\bcommand line:|\bsev\b|\bSEV|\bRMP\b|\bSNP\b|\bccp\b|\bpsp\b|kvm|AMD-Vi|iommu|\befi:", re.IGNORECASE
)
_KERNEL_LOGS = (("dmesg",), ("journalctl", "--dmesg", "--boot", "--output=short-monotonic", "--no-pager"))


def record_host(into: Path, qemus: Iterable[Path], root: Path = Path("/")) -> None:
    """Write the recording of this machine to the directory ``into``, in place of an earlier one.

    ``qemus``: where QEMU may be; the first that is there is asked for its version. ``root`` is where proc, sys and dev
    are. Raises :class:`UserError` if ``into`` is a directory without a recording, which is left as it is.
    """
    if into.exists() and not (into / recorded.RECORD).is_file():
        move = shlex.join(["mv", str(into), f"{into}.old"])
        raise UserError(f"{into}: not a recorded host, so it is left as it is", f"move it out of the way: {move}")
    recorder = _Recorder(root)
    for part in recorded.FILES:
        recorder.take(part, lambda path=root / part: path.read_text(errors="replace"))  # type: ignore[misc]
    recorder.take(recorded.CPUINFO, lambda: _first_processor(root / recorded.CPUINFO))
    for path in sorted(root.glob(recorded.IOMMU_FEATURES)):
        name = path.relative_to(root).as_posix()
        recorder.take(name, lambda path=path: path.read_text(errors="replace"))  # type: ignore[misc]
    if not any(name.endswith("/amd-iommu/features") for name in recorder.texts):
        recorder.absent.append(recorded.IOMMU_FEATURES)
    recorder.take(recorded.KERNEL_LOG, _kernel_log)
    recorder.take(recorded.STATUS, lambda: read_status(root / "dev/sev").hex())
    recorder.take(recorded.QEMU_VERSION, lambda: _qemu_version(qemus))
    recorder.write(into)


class _Recorder:
    """The parts that were read, and those that were not."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.texts: dict[str, str] = {}
        self.absent: list[str] = []
        self._unreadable: dict[str, str] = {}

    def take(self, part: str, read: Callable[[], str]) -> None:
        try:
            self.texts[part] = read()
        except FileNotFoundError:
            self.absent.append(part)
        except UserError as error:
            self._unreadable[part] = error.message
        except OSError as error:
            self._unreadable[part] = error.strerror or type(error).__name__

    def write(self, into: Path) -> None:
        with scratch_directory(into) as scratch:
            made = scratch / into.name
            for part, text in self.texts.items():
                (made / part).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(made / part, text if text.endswith("\n") else f"{text}\n")
            document = {
                "format": recorded.FORMAT,
                "absent": sorted(self.absent),
                "unreadable": self._unreadable,
                "devices": {name: _device(self._root / name.lstrip("/")) for name in recorded.DEVICES},
            }
            write_atomic(made / recorded.RECORD, json.dumps(document, indent=1) + "\n")
            remove_tree(into)
            made.rename(into)


def _first_processor(cpuinfo: Path) -> str:
    return cpuinfo.read_text(errors="replace").partition("\n\n")[0]


def _device(path: Path) -> str:
    if not path.exists():
        return "absent"
    return "usable" if os.access(path, os.R_OK | os.W_OK) else "no rights"


def _kernel_log() -> str:
    """The lines of this boot's kernel log that concern SEV-SNP; from the journal if the kernel's buffer lost its start.

    Raises :class:`UserError` if this user may read neither.
    """
    found, reasons = "", []
    for argv in _KERNEL_LOGS:
        try:
            text = command.run(argv, timeout=60).decode(errors="replace")
        except UserError as error:
            reasons.append(error.message.splitlines()[0])
            continue
        lines = [line for line in text.splitlines() if _CONCERNS.search(line)]
        if _BOOT in text:
            return "\n".join(lines)
        found = found or "\n".join(lines)
    if not found:
        raise UserError("; ".join(reasons) or "the kernel log is empty")
    return found


def _qemu_version(qemus: Iterable[Path]) -> str:
    """The first line of the first QEMU's --version. Raises FileNotFoundError if there is no QEMU."""
    for qemu in qemus:
        if found := command.find(qemu):
            return command.run([found, "--version"], timeout=60).decode(errors="replace").partition("\n")[0]
    raise FileNotFoundError
