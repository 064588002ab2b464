# SPDX-License-Identifier: Apache-2.0
"""The project's paths, relative to the checkout, and the settings of this run."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sevsnp.errors import UserError
from sevsnp.keys.paths import Keys
from sevsnp.pipeline import run_log
from sevsnp.settings.resolved import CONFIG_FILE, PER_RUN, Settings, command_line_words, resolve
from sevsnp.settings.values import Value
from sevsnp.store import session
from tasks.graph import Task, command

Result = TypeVar("Result")

BUILD = Path("build")
RELEASE = BUILD / "snp-release"
RELEASE_MANIFEST = RELEASE / "packages.json"
TOOLS = RELEASE / "bin"
QEMU = TOOLS / "qemu-system-x86_64"
DEBS = BUILD / "debs"
KERNEL = BUILD / "kernel"
GUEST = BUILD / "guest"
VERITY = BUILD / "verity"
BOOT = BUILD / "boot"
LUKS = BUILD / "luks"
E2E = BUILD / "e2e"
RUN = BUILD / "run"
STOCK_FIRMWARE = RELEASE / "usr" / "share" / "ovmf" / "OVMF.amdsev.fd"
FIRMWARE = BUILD / "firmware" / "OVMF.fd"
SOURCE_FIRMWARE = BUILD / "firmware" / "source" / "OVMF.fd"
# This firmware boots from a disk; the measured guests' firmware does not.
DISK_FIRMWARE = RELEASE / "usr" / "share" / "ovmf" / "OVMF.fd"
# The settings of a plain guest's launch.
LAUNCHED = ("PRODUCT", "CPUS", "CPU_MODEL", "POLICY", "GUEST_FEATURES", "FIRMWARE_REASON")
LOCK = Path("packages.lock")
SOURCE_LOCK = Path("sources.lock")
INITRAMFS = BUILD / "initramfs.cpio.zst"
PLAIN_INITRAMFS = BUILD / "initramfs.plain.cpio.zst"
APPLIANCE_INITRAMFS = BUILD / "initramfs.appliance.cpio.zst"
EMULATED_INITRAMFS = BUILD / "initramfs.emulated.cpio.zst"


class SettingsRead:
    """The names of the settings that each task reads while it is created; ``by_task`` has them."""

    def __init__(self) -> None:
        self.by_task: dict[str, set[str]] = {}
        self._now: set[str] | None = None

    @contextlib.contextmanager
    def by(self, task: str) -> Iterator[None]:
        self._now = self.by_task.setdefault(task, set())
        try:
            yield
        finally:
            self._now = None

    def note(self, name: str) -> None:
        if self._now is not None:
            self._now.add(name)


settings_read = SettingsRead()


class _Noted(dict[str, Value]):
    def __getitem__(self, name: str) -> Value:
        settings_read.note(name)
        return super().__getitem__(name)


# This variable is set for the process that DETACH=yes has started.
DETACHED = "SEVSNP_DETACHED"


@cache
def settings() -> Settings:
    """The settings of this run; doit shows an error in one without a traceback."""
    found = checked(resolve, command_line_words(sys.argv[1:]), os.environ, Path(CONFIG_FILE))
    run_log.configure(verbose=found.text("VERBOSE") == "yes")
    found = replace(found, values=_Noted(found.values))
    session.configure(
        session.Options(
            directory=found.artefact_cache(),
            shared=found.text("CACHE"),
            push=found.text("CACHE_MODE") == "push",
            limit=found.number("CACHE_SIZE"),
            signing=found.optional_path("CACHE_KEY"),
            accepted=found.optional_path("CACHE_PUBLIC_KEY"),
        )
    )
    return found


@contextlib.contextmanager
def other_settings(word: str) -> Iterator[None]:
    """Create tasks as if ``word`` (NAME=value) were on the command line, too, while the context lasts."""
    words = sys.argv
    sys.argv = [*words, word]
    settings.cache_clear()
    try:
        yield
    finally:
        sys.argv = words
        settings.cache_clear()


def checked(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function while doit loads the tasks; a user's error is shown without a traceback."""
    from doit.exceptions import InvalidDodoFile

    try:
        return function(*arguments)
    except UserError as error:
        raise InvalidDodoFile(str(error)) from None


def keys() -> Keys:
    """The paths of the user's keys; the task _keys makes them."""
    return Keys.of(settings().config_dir())


def signing_key(name: str) -> Path | None:
    """The private key that the setting ``name`` (ID_KEY or AUTHOR_KEY) names."""
    return settings().optional_path(name)


def own_acpi() -> bool:
    """Whether guests boot with ACPI tables of our own, which the stage brings: ACPI=own."""
    return settings().text("ACPI") == "own"


def stage() -> Path:
    """The stage for the number of vCPUs: QEMU starts it in the kernel's place."""
    return BOOT / f"stage-{settings().number('CPUS')}.efi"


def stage_parts() -> dict[str, Path]:
    """The files that the stage is made of, by the name of the parameter; none without a stage."""
    if not own_acpi():
        return {}
    tables = BOOT / f"acpi-{settings().number('CPUS')}.bin"
    return {"stage_code": BOOT / "stage.bin", "stage_tables": tables, "stage_kernel": KERNEL / "vmlinuz"}


def launch_kernel() -> Path:
    """What a measured guest starts as its kernel: the stage with ACPI=own, else the kernel itself."""
    return stage() if own_acpi() else KERNEL / "vmlinuz"


def firmware() -> Path:
    """The firmware of measured guests: FIRMWARE, our own from source for that word, else our own."""
    return SOURCE_FIRMWARE if from_source() else settings().path("FIRMWARE", FIRMWARE)


def from_source() -> bool:
    """Whether FIRMWARE is the word for our own build from source. A file of this name is ./source."""
    return settings().text("FIRMWARE") == "source"


def own_firmware() -> Path:
    """What the task _firmware makes: with FIRMWARE=source from source, else from the pinned build."""
    return SOURCE_FIRMWARE if from_source() else FIRMWARE


def asked() -> dict[str, Any]:
    """The settings that the user gave for this run, on the command line or in the environment."""
    chosen = settings()
    return {name: value for name, value in chosen.values.items() if chosen.sources[name] in PER_RUN}


def release_manifest() -> dict[str, Any]:
    """The manifest whose list applies to an attestation, and the public key for its signature, if MANIFEST is set."""
    found: dict[str, Path | None] = {"manifest": None, "manifest_key": None}
    for parameter, name in (("manifest", "MANIFEST"), ("manifest_key", "MANIFEST_PUBLIC_KEY")):
        if settings().text("MANIFEST"):
            found[parameter] = settings().optional_path(name)
    return found


def certificate_sources() -> dict[str, Any]:
    """The sources of the certificates that an attestation needs beside the evidence's."""
    from sevsnp.owner.certificate_sources import CertificateSources

    chosen = settings()
    directory, offline = chosen.optional_path("CERTS"), chosen.text("OFFLINE") == "yes"
    return {"sources": CertificateSources(chosen.text("KDS_MIRROR"), directory, offline)}


def guest_name(workflow: str) -> str:
    """The name of a command's guest: NAME, else that of its workflow."""
    return settings().text("NAME") or workflow


def run_options(workflow: str) -> Any:
    """The options that are free at launch, from the settings; the state directory has the guest's name."""
    from sevsnp.qemu.run_options import RunOptions
    from sevsnp.settings.values import parse_forwards

    chosen = settings()
    return RunOptions(
        qemu=QEMU,
        memory=chosen.number("MEMORY"),
        ssh_port=chosen.number("SSH_PORT"),
        attest_port=chosen.number("ATTEST_PORT"),
        state=RUN / guest_name(workflow),
        restricted=chosen.text("GUEST_NETWORK") == "restricted",
        terminal=not detached(),
        movable=tuple(name for name in ("SSH_PORT", "ATTEST_PORT") if chosen.is_default(name)),
        forwards=parse_forwards(chosen.text("FORWARD")),
    )


def detached() -> bool:
    """Whether DETACH=yes started this process, so that it has no terminal of its own."""
    return DETACHED in os.environ


def given_words() -> list[str]:
    """The settings on the command line of this run, as words."""
    return [f"{name}={text}" for name, text in command_line_words(sys.argv[1:]).items()]


def launching(function: str, task: str, usual: str, /, needs: Iterable[str] = (), **arguments: Any) -> Task:
    """A task that launches a guest, by default named ``usual``: in this process, or with DETACH=yes in another one."""
    name = guest_name(usual)
    if settings().text("DETACH") == "yes" and not detached():
        words = [word for word in given_words() if not word.startswith("DETACH=")]
        return command(
            "sevsnp.guests.detach:run_detached",
            needs=needs,
            task=task,
            words=words,
            state=RUN / name,
            name=name,
            variable=DETACHED,
        )
    return command(function, launches=True, needs=needs, options=run_options(usual), name=name, **arguments)


def end_cleanly() -> None:
    """On SIGINT, SIGTERM and SIGHUP end all started processes and exit, so that doit saves what it has finished so far.

    A run that was told to outlive its terminal (nohup) ignores SIGHUP.
    """

    def handler(number: int, frame: object) -> None:
        # If the module was not loaded, no process was started.
        if command := sys.modules.get("sevsnp.system.command"):
            command.end_all()
        # The terminal itself may be gone.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\ninterrupted by {signal.Signals(number).name}\n")
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handler)
