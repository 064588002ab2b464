# SPDX-License-Identifier: Apache-2.0
"""FORWARD and the other ports: QEMU's options for every kind of guest, and the values that are refused."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.qemu.ports import check_ports
from sevsnp.qemu.process import common_arguments, guest_access, machine_arguments
from sevsnp.qemu.snp_options import snp_command
from sevsnp.settings.values import parse_forwards
from tests.unit.qemu.test_snp_options import launch_in, options_in, value_of

FORWARDS = parse_forwards("8443:443,9000:22")


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("restricted", [False, True])
def test_every_guest_gets_the_same_forwards(tmp_path: Path, restricted: bool) -> None:
    launch, options = launch_in(tmp_path), options_in(tmp_path, forwards=FORWARDS, restricted=restricted)
    network = {
        value_of(arguments, "-netdev")
        for arguments in (
            snp_command(launch, options, tmp_path / "qmp", 51, 1),
            common_arguments(launch, options, tmp_path / "qmp"),  # emulated
            machine_arguments(1, options),  # plain
        )
    }
    pairs = ((2222, 22), (8088, 8088), (8443, 443), (9000, 22))
    forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{here}-:{inside}" for here, inside in pairs)
    assert network == {f"user,id=net,restrict={'on' if restricted else 'off'},{forwards}"}
    assert guest_access(launch, options, tmp_path).listen == (2222, 8088, 8443, 9000)


def test_a_forward_in_use(tmp_path: Path, busy: int) -> None:
    options = options_in(tmp_path, forwards=((busy, 443), (busy - 1, 80)))
    with pytest.raises(UserError, match=f"^FORWARD={busy}:443: in use on 127.0.0.1\n") as refused:
        check_ports(options)
    given = parse_forwards(refused.value.hint.partition("FORWARD=")[2])
    assert [inside for _, inside in given] == [443, 80] and given[1][0] == busy - 1
    assert given[0][0] > busy
    check_ports(options_in(tmp_path, forwards=given))


@pytest.mark.parametrize(
    ("name", "changes"), [("SSH_PORT", {"ssh_port": 4321}), ("ATTEST_PORT", {"attest_port": 4321})]
)
def test_a_forward_of_the_port_of_another_setting_is_refused(
    tmp_path: Path, name: str, changes: dict[str, int]
) -> None:
    # Also where that port may move: nobody can tell which of the two is meant.
    options = options_in(tmp_path, forwards=((4321, 443),), movable=(name,), **changes)
    with pytest.raises(UserError, match=f"^FORWARD=4321:443: 4321 is the {name}, expected another port\n") as refused:
        check_ports(options)
    check_ports(options_in(tmp_path, forwards=parse_forwards(refused.value.hint.partition("FORWARD=")[2]), **changes))


def test_a_port_that_moves_does_not_use_a_forwarded_port(tmp_path: Path, busy: int) -> None:
    options = options_in(tmp_path, ssh_port=busy, movable=("SSH_PORT",), forwards=((busy + 1, 443),))
    moved = check_ports(options)
    assert moved.ssh_port > busy + 1 and moved.forwards == options.forwards
