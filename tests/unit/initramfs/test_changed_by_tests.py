# SPDX-License-Identifier: Apache-2.0
"""Each line of the initramfs that a boot test changes is there once: most of these tests run only with --full."""

import pytest

from tests.adversary.test_firmware_starts_nothing_else import SAYS, SAYS_KEY
from tests.conftest import PROJECT
from tests.support.luks_arms import Check

CHANGED = {("init", after) for after, _ in (SAYS, SAYS_KEY)}
CHANGED |= {(name, old) for check in Check for name, old, _ in check.value}


@pytest.mark.parametrize(("name", "line"), sorted(CHANGED))
def test_a_line_that_a_boot_test_changes_is_there_once(name: str, line: str) -> None:
    assert (PROJECT / "initramfs" / name).read_text().count(line) == 1
