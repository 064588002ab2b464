# SPDX-License-Identifier: Apache-2.0
"""doit's own look at input files: by SHA-256, and by nothing that a tool can set back."""

import os
from typing import Any

from doit.dependency import FileChangedChecker

from sevsnp.store.session import index


class Sha256Checker(FileChangedChecker):  # type: ignore[misc]
    """A file has changed when its SHA-256 has; what is known already is not read again."""

    def check_modified(self, file_path: str, file_stat: os.stat_result, state: Any) -> bool:
        try:
            return bool(index().file(file_path) != state)
        except OSError:
            return True  # whatever is wrong with it, the task says so

    def get_state(self, dep: str, current_state: Any) -> str:
        return index().file(dep)
