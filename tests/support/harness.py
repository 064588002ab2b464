# SPDX-License-Identifier: Apache-2.0
"""Boots a guest for a test: the emulated platform, a console log to wait for, and no network access for the guest."""

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sevsnp.e2e.guest import free_port
from sevsnp.emulation.launch import running
from sevsnp.host.console import read_console
from sevsnp.measurement.launch_digest import KernelHashes
from sevsnp.qemu import platforms
from sevsnp.qemu.run_options import RunOptions
from sevsnp.vm_config.config import Disk, File, Launch
from tests.support.waiting import wait_until

BOOT_SECONDS = 600.0
MEMORY = 1 << 30


@dataclass(frozen=True)
class Guest:
    """A running guest: its QEMU process and its ports."""

    process: "subprocess.Popen[bytes]"
    options: RunOptions

    @property
    def root(self) -> Path:
        """The certificate of the software secure processor."""
        return self.options.state / "ark.pem"

    def log(self) -> str:
        return read_console(self.options.serial_log)

    def wait_for(self, text: str, seconds: float = BOOT_SECONDS) -> str:
        """The console log as soon as it contains ``text``; fails if QEMU ends or the time is over before."""

        def there() -> bool:
            ended = self.process.poll() is not None  # tested before the log is read: the last words count
            found = text in self.log()
            assert found or not ended, f"QEMU ended before {text!r}:\n{self.log()[-3000:]}"
            return found

        wait_until(there, what=lambda: f"no {text!r}:\n{self.log()[-3000:]}", net=seconds)
        return self.log()

    def wait_end(self, seconds: float = BOOT_SECONDS) -> str:
        """The console log after QEMU has ended by itself."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"QEMU still runs after {seconds:.0f} s:\n{self.log()[-3000:]}") from None
        return self.log()


# A port inside every guest of the tests, to which its first forward leads; nothing listens there.
FORWARDED = 9443


@functools.cache
def accelerator_here(kernel: Path, qemu: Path) -> str:
    """kvm if it boots this kernel on this machine, else tcg; asked once for all test processes."""
    return platforms.accelerator(kernel, qemu, Path(os.environ["SEVSNP_CACHE"]).with_name("platform.json"))


@contextlib.contextmanager
def boot(
    launch: Launch,
    qemu: Path,
    state: Path,
    *,
    hashes: KernelHashes | None = None,
    extra: tuple[str, ...] = (),
    memory: int = MEMORY,
    accelerator: str = "",
) -> Iterator[Guest]:
    """Start ``launch`` emulated, without checks, as a malicious host could; ``extra`` are QEMU options.

    ``accelerator`` is kvm or tcg; if it is empty, kvm is used if it boots the kernel here.
    """
    state.mkdir(parents=True, exist_ok=True)
    options = RunOptions(
        qemu=qemu,
        memory=memory,
        ssh_port=free_port(),
        attest_port=free_port(),
        state=state,
        restricted=True,
        extra=extra,
        forwards=((free_port(), FORWARDED),),
    )
    with running(launch, options, accelerator or accelerator_here(launch.kernel.path, qemu), hashes) as process:
        yield Guest(process, options)


def flipped(file: File | Disk, directory: Path, offset: int) -> Path:
    """A copy of ``file`` with one bit changed at ``offset`` (negative: from the end)."""
    target = directory / f"flipped-{file.path.name}"
    shutil.copyfile(file.path, target)
    with target.open("r+b") as stream:
        stream.seek(offset, 2 if offset < 0 else 0)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    return target


def with_disk(launch: Launch, role: str, path: Path) -> Launch:
    """The launch with another file for one disk."""
    disks = tuple(disk._replace(path=path) if disk.role == role else disk for disk in launch.disks)
    return replace(launch, disks=disks)
