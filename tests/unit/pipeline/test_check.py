# SPDX-License-Identifier: Apache-2.0
"""A check of a task other than that of its artefact says why the task must run."""

from tasks.graph import Check


def test_a_check_that_fails_gives_its_reason() -> None:
    check = Check("os.path:exists", "it is not there")
    assert check(None, {}, "/") is True and check.reason == []
    assert (
        check(None, {}, "/nonsuch") is False
        and check.reason == ["it is not there"]
        and repr(check) == "it is not there"
    )
    assert check(None, {}, "/") is True and check.reason == []
