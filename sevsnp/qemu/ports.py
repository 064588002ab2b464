# SPDX-License-Identifier: Apache-2.0
"""The ports of 127.0.0.1 that lead into a guest: which ones, and whether QEMU can listen at them."""

import contextlib
import socket
from collections.abc import Collection, Iterator
from dataclasses import replace

from sevsnp.errors import UserError
from sevsnp.qemu.run_options import RunOptions

# Ports inside the guest.
GUEST_SSH = 22
GUEST_ATTEST = 8088
_TRIED = 100


def forwarded(options: RunOptions) -> tuple[tuple[int, int], ...]:
    """All pairs of a port here and the guest's port that it leads to."""
    return ((options.ssh_port, GUEST_SSH), (options.attest_port, GUEST_ATTEST), *options.forwards)


def check_ports(options: RunOptions) -> RunOptions:
    """Refuse ports that are in use, equal, or not for this user; returns the options with the ports to launch with.

    A port in ``options.movable`` that is in use is replaced by a free one.
    """
    if options.ssh_port == options.attest_port:
        raise UserError(f"SSH_PORT and ATTEST_PORT: found {options.ssh_port} for both, expected two ports")
    for name, port in (("SSH_PORT", options.ssh_port), ("ATTEST_PORT", options.attest_port)):
        for here, inside in options.forwards:
            if here == port:
                raise UserError(
                    f"FORWARD={here}:{inside}: {here} is the {name}, expected another port",
                    f"take another one: {_instead(options, here)}",
                )
    options = _with_free_ports(options)
    for what, port in _named(options):
        try:
            _bind(port)
        except PermissionError:
            raise UserError(
                f"{what}: this user may not open it", f"take a port above 1023: {_instead(options, port)}"
            ) from None
        except OSError:
            raise UserError(f"{what}: in use on 127.0.0.1", f"take another one: {_instead(options, port)}") from None
    return options


def _named(options: RunOptions) -> Iterator[tuple[str, int]]:
    """Each setting of a port as its user writes it, and the port."""
    yield f"SSH_PORT={options.ssh_port}", options.ssh_port
    yield f"ATTEST_PORT={options.attest_port}", options.attest_port
    for port, inside in options.forwards:
        yield f"FORWARD={port}:{inside}", port


def _instead(options: RunOptions, port: int) -> str:
    """The setting that names ``port`` with a free port above it in its place: NAME=value."""
    free = _free_port(max(port + 1, 1024), [each for each, _ in forwarded(options)])
    if any(port == here for here, _ in options.forwards):
        pairs = ((free if here == port else here, inside) for here, inside in options.forwards)
        return "FORWARD=" + ",".join(f"{here}:{inside}" for here, inside in pairs)
    return f"SSH_PORT={free}" if port == options.ssh_port else f"ATTEST_PORT={free}"


def _with_free_ports(options: RunOptions) -> RunOptions:
    ssh_port, attest_port = options.ssh_port, options.attest_port
    more = [port for port, _ in options.forwards]
    if "SSH_PORT" in options.movable:
        ssh_port = _free_from(ssh_port, [attest_port, *more], "SSH_PORT")
    if "ATTEST_PORT" in options.movable:
        attest_port = _free_from(attest_port, [ssh_port, *more], "ATTEST_PORT")
    return replace(options, ssh_port=ssh_port, attest_port=attest_port)


def _free_from(wanted: int, others: Collection[int], name: str) -> int:
    """``wanted`` if it is free, else a free port above it."""
    port = _free_port(wanted, others)
    if port != wanted:
        print(f"{name}={wanted} is in use; {name}={port} is taken instead", flush=True)
    return port


def _bind(port: int) -> None:
    """Raises OSError if nothing could listen at this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def _free_port(least: int, others: Collection[int]) -> int:
    """A free port from ``least`` on that is not in ``others``; ``least`` if none is near."""
    for port in range(least, min(least + _TRIED, 65536)):
        with contextlib.suppress(OSError):
            if port not in others:
                _bind(port)
                return port
    return least
