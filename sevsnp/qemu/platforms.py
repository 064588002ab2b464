# SPDX-License-Identifier: Apache-2.0
"""Chooses a guest's platform: `snp` if a test boot on this host succeeds, else `emulated`.

Neither the existence of /dev/kvm nor a kernel parameter proves anything. Therefore a kernel is booted, and the result
is remembered until the machine reboots or QEMU changes.
"""

import contextlib
import importlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.qemu.confine import Access
from sevsnp.qemu.process import check_version, start, stop
from sevsnp.qemu.run_options import RunOptions
from sevsnp.qemu.snp_options import snp_arguments
from sevsnp.stage.layout import linux_of
from sevsnp.system.files import write_atomic
from sevsnp.vm_config.config import BANNER, Launch

_KVM = Path("/dev/kvm")
_SNP_PARAMETER = Path("/sys/module/kvm_amd/parameters/sev_snp")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_KVM_SECONDS = 5.0
_SNP_SECONDS = 20.0


@dataclass(frozen=True)
class Platform:
    """A platform, the accelerator of its vCPUs, and why it was chosen."""

    name: str
    accelerator: str
    reason: str


def choose(requested: str, launch: Launch, qemu: Path, probe_cache: Path) -> Platform:
    """The platform for ``requested`` (auto, snp or emulated); ``probe_cache`` remembers earlier results.

    Raises :class:`UserError` if ``snp`` is requested and the host cannot run it, and for a QEMU too old for the
    platform.
    """
    platform = _chosen(requested, launch, qemu, probe_cache)
    check_version(qemu, platform.name)
    return platform


def accelerator(kernel: Path, qemu: Path, probe_cache: Path) -> str:
    """``kvm`` if it boots ``kernel``, else ``tcg``, QEMU's own emulation; for VMs that are not measured."""
    return "tcg" if _remembered(probe_cache, "kvm", qemu, lambda: _kvm_boots(kernel, qemu)) else "kvm"


def _chosen(requested: str, launch: Launch, qemu: Path, probe_cache: Path) -> Platform:
    kvm = _remembered(probe_cache, "kvm", qemu, lambda: _kvm_boots(launch.kernel.path, qemu))
    if requested != "emulated":
        snp = _remembered(probe_cache, "snp", qemu, lambda: _snp_boots(launch, qemu)) if kvm == "" else kvm
        if snp == "":
            return Platform("snp", "kvm", "a test guest booted with SEV-SNP")
        if requested == "snp":
            raise UserError(
                f"PLATFORM=snp: this host cannot run SEV-SNP guests: {snp}",
                "use PLATFORM=emulated, or see docs/hardware.md",
            )
        return Platform("emulated", "kvm" if kvm == "" else "tcg", snp)
    return Platform("emulated", "kvm" if kvm == "" else "tcg", "asked for")


def snp_is_known(qemu: Path, probe_cache: Path) -> bool:
    """Whether this host was found to have SEV-SNP since its last boot; nothing is tried."""
    return _known(probe_cache).get(_question("snp", qemu)) == ""


def _question(question: str, qemu: Path) -> str:
    status = qemu.stat() if qemu.exists() else None
    return f"{question} {_BOOT_ID.read_text().strip()} {qemu} {status and (status.st_ino, status.st_mtime_ns)}"


def _known(probe_cache: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(probe_cache.read_text())
        return document if isinstance(document, dict) else {}
    return {}


def _remembered(probe_cache: Path, question: str, qemu: Path, probe: Callable[[], str]) -> str:
    """Why it does not work, or an empty string; probed once per boot of this machine and file of QEMU."""
    asked, known = _question(question, qemu), _known(probe_cache)
    if not isinstance(known.get(asked), str):
        known[asked] = probe()
        write_atomic(probe_cache, json.dumps(known, indent=1) + "\n")
    return known[asked]


def _closed(device: Path, name: str) -> str:
    if not device.exists():
        return f"no {name}"
    return "" if os.access(device, os.R_OK | os.W_OK) else f"{name} is not open to this user"


def _no_snp_kernel() -> str:
    try:
        said = _SNP_PARAMETER.read_text().strip()
    except OSError:
        return "the host kernel has no SEV-SNP (kvm_amd.sev_snp)"
    return "" if said in ("Y", "1") else f"{_SNP_PARAMETER} says no"


def _kvm_boots(kernel: Path, qemu: Path) -> str:
    if closed := _closed(_KVM, "/dev/kvm"):
        return closed
    machine = ["-machine", "q35", "-accel", "kvm", "-cpu", "max", "-m", "512M"]
    with tempfile.TemporaryDirectory(prefix="sevsnp-") as work:
        bare = _bare_kernel(kernel, Path(work))
        return _boots(bare, qemu, machine, (), _KVM_SECONDS, "a test kernel did not boot with KVM")


def _bare_kernel(kernel: Path, directory: Path) -> Path:
    """The kernel in a stage, which QEMU's own firmware does not start, as a file in ``directory``; else ``kernel``."""
    content = kernel.read_bytes() if kernel.is_file() else b""
    inner = linux_of(content)
    if inner == content:
        return kernel
    bare = directory / "kernel"
    bare.write_bytes(inner)
    return bare


def _snp_boots(launch: Launch, qemu: Path) -> str:
    if missing := _no_snp_kernel():
        return missing
    probe = replace(launch, id_block=None, id_auth=None)  # the probe is another guest, with another launch digest
    machine = [*snp_arguments(probe, 512 << 20, 51, 1), "-bios", str(launch.firmware.path)]
    files = (launch.firmware.path,)
    return _boots(launch.kernel.path, qemu, machine, files, _SNP_SECONDS, "a test kernel did not boot with SEV-SNP")


def _boots(
    kernel: Path, qemu: Path, machine: list[str], files: tuple[Path, ...], seconds: float, otherwise: str
) -> str:
    """Boot a kernel without a root: it panics, and its command line makes it reset then, which ends QEMU."""
    arguments = [*machine, "-nodefaults", "-no-reboot", "-display", "none", "-kernel", str(kernel)]
    access = Access(read=tuple(str(path) for path in (kernel, *files)))
    process = start(qemu, [*arguments, "-append", "panic=-1"], access, terminal=False, messages=Path(os.devnull))
    try:
        return "" if process.wait(timeout=seconds) == 0 else otherwise
    except subprocess.TimeoutExpired:
        return f"{otherwise} in {seconds:.0f} s"
    finally:
        stop(process)


@contextlib.contextmanager
def running(platform: Platform, launch: Launch, options: RunOptions) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the guest on a platform; the emulation is named by a string, and imported only if it is chosen."""
    options.state.mkdir(parents=True, exist_ok=True)
    if platform.name == "snp":
        from sevsnp.qemu import snp

        with snp.running(launch, options) as process:
            yield process
    else:
        emulation = importlib.import_module("sevsnp.emulation.launch")
        print(f"{BANNER} ({platform.reason}; {platform.accelerator})", flush=True)
        with emulation.running(launch, options, platform.accelerator) as process:
            yield process
