# SPDX-License-Identifier: Apache-2.0
"""doit's check of input files, by digests instead of times that a tool can set back."""

import os
from typing import Any

from doit.dependency import FileChangedChecker

from sevsnp.store.session import index


class Sha256Checker(FileChangedChecker):  # type: ignore[misc]
    """A file has changed if its digest has; a file whose digest is known is not read again."""

    def check_modified(self, file_path: str, file_stat: os.stat_result, state: Any) -> bool:
        try:
            return bool(index().input(file_path) != state)
        except OSError:
            return True  # the task reports the error

    def get_state(self, dep: str, current_state: Any) -> str:
        return index().input(dep)
