# SPDX-License-Identifier: Apache-2.0
"""The commands in a hint have the settings with which the run was called, where they mean something."""

import pytest
from doit.task import Task

from sevsnp.pipeline.help import Guide
from sevsnp.pipeline.hints import with_settings

TASKS = {
    task.name: task
    for task in (
        Task("_keys", [], targets=["key"]),
        Task("setup_luks", [], file_dep=["key"]),
        Task("manifest", []),
        Task("stop", []),
        Task("bench:boot", []),
    )
}
READ = {"_keys": {"CONFIG_DIR"}, "setup_luks": {"CPUS", "IMAGE", "VERBOSE"}, "manifest": {"CPUS"}, "stop": {"NAME"}}
GIVEN = {"CPUS": "4", "CONFIG_DIR": "my keys", "NAME": "second", "VERBOSE": "yes"}


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("make it again: ./doitw manifest", "make it again: ./doitw manifest CPUS=4"),
        # Also what the tasks before it read; nothing that no task reads.
        ("run: ./doitw setup_luks", "run: ./doitw setup_luks CPUS=4 CONFIG_DIR='my keys'"),
        ("./doitw stop manifest, or wait", "./doitw stop manifest CPUS=4 NAME=second, or wait"),
        # The hint's own value stays.
        ("try ./doitw manifest CPUS=2; or", "try ./doitw manifest CPUS=2; or"),
        ("./doitw stop NAME=first; or ./doitw manifest", "./doitw stop NAME=first; or ./doitw manifest CPUS=4"),
        (
            "./doitw setup_luks IMAGE='a b; c' again",
            "./doitw setup_luks IMAGE='a b; c' CPUS=4 CONFIG_DIR='my keys' again",
        ),
        # No task, or none that reads a setting.
        ("all settings: ./doitw settings NAME", "all settings: ./doitw settings NAME"),
        ("./doitw forget setup_luks", "./doitw forget setup_luks"),
        ("./doitw bench:boot", "./doitw bench:boot"),
        ("docs/hardware.md says more", "docs/hardware.md says more"),
    ],
)
def test_the_settings_that_a_command_reads_are_added(hint: str, shown: str) -> None:
    assert with_settings(hint, GIVEN, Guide(settings=READ), TASKS) == shown
    assert with_settings(hint, {}, Guide(settings=READ), TASKS) == hint


def test_no_login_is_shown() -> None:
    shown = with_settings("./doitw manifest", {"CPUS": "https://me:secret@host/"}, Guide(settings=READ), TASKS)
    assert shown == "./doitw manifest CPUS='https://…@host/'"
