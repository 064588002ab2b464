# SPDX-License-Identifier: Apache-2.0
"""The pipeline: `doit list` shows its tasks; tasks/ has one module for each stage."""

# ruff: noqa: E402 - nothing is loaded before the secret is out of the environment

import os

from sevsnp.keys.taken_key import take_over

# Before any other import, so that no process can be started before.
take_over()

import atexit
import functools
import gc
import importlib

from sevsnp.pipeline.checker import Sha256Checker
from sevsnp.pipeline.commands import adopt
from sevsnp.pipeline.database import tolerate_damage
from sevsnp.pipeline.help import Guide
from sevsnp.pipeline.reporter import Reporter
from tasks.creators import tasks_with, watched
from tasks.listing import GROUPS
from tasks.luks_guest import left
from tasks.project import end_cleanly, settings_read

# The modules in tasks/, one for each stage. A new module must be named here.
STAGES = (
    "setup", "host", "packages", "packages_build", "stage", "initramfs", "guest", "cloud", "verity", "luks",
    "luks_guest", "guests", "keys", "idblock", "tools", "e2e", "launchers", "release", "bench", "cache", "docs",
)  # fmt: skip

# The result of a build must not depend on the user.
os.umask(0o022)
end_cleanly()
tolerate_damage()
# At its end Python searches all objects for reference cycles, twice. That takes a tenth of the time of `doit list`.
atexit.register(gc.freeze)

_creators = {}
for _stage in STAGES:
    _module = importlib.import_module(f"tasks.{_stage}")
    _creators.update({name: watched(value) for name, value in vars(_module).items() if name.startswith("task_")})
globals().update(_creators)
_texts = {name[5:]: value.__doc__ or "" for name, value in _creators.items()}
adopt(Guide(GROUPS, _texts, settings_read.by_task, functools.partial(tasks_with, _creators)), left)

DOIT_CONFIG = {
    "default_tasks": ["_welcome"],
    "backend": "sqlite3",
    "check_file_uptodate": Sha256Checker,
    "dep_file": ".doit.db",
    "par_type": "thread",
    "reporter": Reporter,
    "verbosity": 2,
}
