# SPDX-License-Identifier: Apache-2.0
"""Command lines that are not one of ours, each with an honest table so that the firmware does start it.

The control is the shared guest: the same words, once each, boot. The table of all refused lines is in
tests/unit/initramfs/test_boot_words.py; here a few of them meet the real init.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.system.files import sha256_file
from sevsnp.vm_config.cmdline import MAX_LENGTH, build_cmdline
from sevsnp.vm_config.config import File
from tests.adversary.test_tamper_root import FATAL, ends
from tests.conftest import Built
from tests.support.harness import boot
from tests.support.replacing import replaced_once

pytestmark = pytest.mark.boot


@pytest.mark.full
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" sevsnp.mode=verity", "", "sevsnp.mode is missing"),
        (" sevsnp.rootfs=ext4", " sevsnp.rootfs=ext4 sevsnp.rootfs=ext4", "sevsnp.rootfs given twice"),
        (" sevsnp.mode=verity", " sevsnp.mode=plain", "sevsnp.mode: found plain"),
        (" loglevel=4", " sevsnp.debug=1", "unknown word sevsnp.debug=1"),
    ],
)
def test_init_refuses_the_command_line(built: Built, tmp_path: Path, old: str, new: str, message: str) -> None:
    launch = built.config("emulated").launch
    path = tmp_path / "cmdline"
    path.write_text(replaced_once(launch.cmdline.path.read_text(), old, new))
    log = ends(replace(launch, cmdline=File(path, sha256_file(path))), built, tmp_path / "state")
    assert f"{FATAL}: BadCommandLine: {message}" in log
    assert "Booting dm-verity" not in log


@pytest.mark.full
def test_the_longest_command_line_arrives_whole(built: Built, tmp_path: Path) -> None:
    """The guest uses every word that is measured. Control: the shared guest, whose line is short."""
    launch = built.config("emulated").launch
    words = launch.cmdline.path.read_text()
    path = tmp_path / "cmdline"
    # The word that init cannot do without comes last.
    words, last = words.replace(" sevsnp.mode=verity", ""), "sevsnp.mode=verity"
    path.write_text(build_cmdline([*words.split(), "x=" + "x" * (MAX_LENGTH - len(words) - len(last) - 4), last]))
    assert path.stat().st_size == MAX_LENGTH
    longest = replace(launch, cmdline=File(path, sha256_file(path)))
    with boot(longest, built.qemu, tmp_path / "state") as guest:
        assert FATAL not in guest.wait_for("init: ")
