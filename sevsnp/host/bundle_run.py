# SPDX-License-Identifier: Apache-2.0
"""A host bundle's ./run: starts the guest of its directory. It makes no security decision; the owner's tools do."""

import argparse
import os
import re
import shutil
import signal
import sys
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.host.run import run_guest, told_of, words_of
from sevsnp.qemu.platforms import choose
from sevsnp.qemu.run_options import RunOptions
from sevsnp.settings.values import FORWARDS, LEAST_MEMORY, parse_forwards, parse_size
from sevsnp.vm_config.config import Launch, read_vm_config

# The bundle's own directories, and those of its guests, which no new bundle in its place replaces (tasks/e2e.py).
OWN, STATE, STATES = ("lib", "runtime"), "state", "states"


def state_directory(bundle: Path, given: str) -> Path:
    """The directory that ``--state`` names: below ``states``, unless a directory in the bundle has this name already.

    A path that is absolute or begins with ``state``, ``states`` or ``..`` is one in or beside the bundle.
    """
    place = Path(given)
    first = place.parts[0] if place.parts else ""
    there = first not in ("", *OWN) and (bundle / place).is_dir()
    if there or place.is_absolute() or first in (STATE, STATES, ".."):
        return bundle / place
    return bundle / STATES / place


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a TCP port from 1 to 65535")
    return int(text)


def _forwards(text: str) -> tuple[tuple[int, int], ...]:
    try:
        return parse_forwards(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {FORWARDS}") from None


def _memory(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError:
        size = 0
    if size < LEAST_MEMORY:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size from {LEAST_MEMORY >> 20}M, as 1536M or 4G")
    return size


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run", description="Start the guest of this bundle.")
    parser.add_argument("--platform", choices=("auto", "snp", "emulated"), default="auto")
    parser.add_argument("--memory", type=_memory, default="2G", help="as 1536M or 4G (default: %(default)s)")
    parser.add_argument("--ssh-port", type=_port, default=2222, help="(default: %(default)s)")
    parser.add_argument("--attest-port", type=_port, default=8088, help="(default: %(default)s)")
    parser.add_argument(
        "--forward", type=_forwards, default=(), metavar="HERE:GUEST,…", help="more ports into the guest, as 8443:443"
    )
    parser.add_argument(
        "--restricted",
        action="store_true",
        help="the guest reaches no network; only its forwarded ports can be reached",
    )
    parser.add_argument("--qemu", help="QEMU to use (default: $QEMU, else qemu-system-x86_64 on PATH)")
    parser.add_argument(
        "--state",
        default=STATE,
        metavar="NAME",
        help="directory for logs and the guest's disk; another name is below states (default: %(default)s)",
    )
    return parser


def _qemu(given: str | None) -> Path:
    name = given or os.environ.get("QEMU") or "qemu-system-x86_64"
    found = shutil.which(name)
    if not found:
        raise UserError(f"{name}: no such program", "install QEMU 10 or newer, or say where it is: ./run --qemu FILE")
    return Path(found)


def _bundle_task(launch: Launch) -> str:
    return "host_bundle_luks" if launch.workflow == "luks" else "host_bundle"


def _other_bundle(launch: Launch) -> str:
    return f"ask the owner for a bundle that can be emulated too, from: ./doitw {_bundle_task(launch)} PLATFORM=auto"


def _in_own_words(text: str, launch: Launch | None) -> str:
    """A message in words for the host, where settings are options of ./run and no file can be made again."""
    if launch:
        again = f"copy the bundle here again; the owner packs it with: ./doitw {_bundle_task(launch)}"
        text = re.sub(r"make it again with: \./doitw \S.*$", again, text, flags=re.MULTILINE)
    return re.sub(
        r"(\./doitw .*)|\b(PLATFORM|MEMORY|SSH_PORT|ATTEST_PORT|FORWARD)=",
        lambda found: found[1] or f"--{found[2].lower().replace('_', '-')} ",  # commands for the owner stay
        text,
    )


def main(argv: list[str], bundle: Path) -> int:
    """Run the bundle in the directory ``bundle``; returns the exit code."""
    # An exception, so that QEMU is ended and its files are removed.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # nohup
            signal.signal(ending, lambda number, _: sys.exit(128 + number))
    given = _arguments().parse_args(argv)
    emulated = bundle / "launch.emulated.toml"
    production = None
    try:
        production = read_vm_config(bundle / "launch.toml").launch
        if given.platform == "emulated" and not emulated.exists():
            raise UserError("--platform emulated: this bundle was made for SEV-SNP alone", _other_bundle(production))
        options = RunOptions(
            qemu=_qemu(given.qemu),
            memory=given.memory,
            ssh_port=given.ssh_port,
            attest_port=given.attest_port,
            state=state_directory(bundle, given.state),
            restricted=given.restricted,
            forwards=given.forward,
            terminal=True,
        )
        options.state.mkdir(parents=True, exist_ok=True)
        probe_cache = options.state / "platform.json"
        chosen = choose(given.platform, production, options.qemu, probe_cache)
        if chosen.name == "emulated" and not emulated.exists():
            raise UserError(
                f"no SEV-SNP: {chosen.reason}; this bundle was made for SEV-SNP alone", _other_bundle(production)
            )
        source = bundle / "launch.toml" if chosen.name == "snp" else emulated
        launch = read_vm_config(source).launch
        words = " HOST=…" + words_of(launch.workflow, launch.workflow, launch.platform)
        told = told_of(launch, words, hint="run another one: ./run --state second")
        run_guest(launch=launch, options=options, platform=chosen, probe_cache=probe_cache, told=told, source=source)
    except UserError as error:
        print(f"run: {_in_own_words(str(error), production)}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"run: {error.filename or bundle}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
