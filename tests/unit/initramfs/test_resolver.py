# SPDX-License-Identifier: Apache-2.0
"""The guest's DNS servers from its measured command line: the files that init leaves in the new root; real mounts.

The mounts are made in a mount namespace of the test, in which the test is root.
"""

import os
import sys
import textwrap
from pathlib import Path

import pytest

from sevsnp.system.command import run

INITRAMFS = Path(__file__).parents[3] / "initramfs"
SCRIPT = """\
import errno, os, sys
sys.path.insert(0, sys.argv[1])
import resolver
root = sys.argv[2]
target = f"{root}/etc/resolv.conf"
resolver.set_up(root, ["192.0.2.1", "2001:db8::1"])
"""


def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/run").mkdir()
    return tmp_path / "root"


def in_namespace(place: Path, then: str) -> str:
    code = SCRIPT + textwrap.dedent(then)
    words: list[str | Path] = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-B",
        "-c",
        code,
        INITRAMFS,
        place,
    ]
    return run(words, timeout=60).decode()


@pytest.mark.parametrize("before", ["nameserver 10.0.2.3\n", None])
def test_a_file_resolv_conf_is_covered_by_a_mount_and_cannot_be_replaced(tmp_path: Path, before: "str | None") -> None:
    place = root(tmp_path)
    if before is not None:
        (place / "etc/resolv.conf").write_text(before)
    seen = in_namespace(
        place,
        """
        print(open(target).read(), end="")
        for change in (
            lambda: open(target, "w"), lambda: os.unlink(target), lambda: os.rename(f"{root}/run/other", target)
        ):
            open(f"{root}/run/other", "w").close()  # control: the directories beside it can be written
            try:
                change()
            except OSError as error:
                print(errno.errorcode[error.errno])
        """,
    )
    assert seen == "nameserver 192.0.2.1\nnameserver 2001:db8::1\nEROFS\nEBUSY\nEBUSY\n"
    # The disk itself, which only the namespace covered, is as it was.
    assert (place / "etc/resolv.conf").read_text() == (before or "")


def test_a_link_resolv_conf_stays_and_its_manager_is_configured(tmp_path: Path) -> None:
    """Control: the test above, in which resolv.conf is not a link."""
    place = root(tmp_path)
    (place / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    in_namespace(place, "assert not os.path.exists(target)")
    assert os.readlink(place / "etc/resolv.conf") == "../run/systemd/resolve/stub-resolv.conf"
    resolved = (place / "run/systemd/resolved.conf.d/zz-guest-dns.conf").read_text()
    assert resolved == "[Resolve]\nDNS=192.0.2.1 2001:db8::1\nFallbackDNS=\nDomains=~.\n"
    manager = (place / "run/NetworkManager/conf.d/zz-guest-dns.conf").read_text()
    assert manager == "[global-dns-domain-*]\nservers=192.0.2.1,2001:db8::1\n"
