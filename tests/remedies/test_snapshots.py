# SPDX-License-Identifier: Apache-2.0
"""The hint for a version that the mirror has dropped: a snapshot mirror, named as it says, has it."""

import re
from pathlib import Path

from sevsnp.packages.lock import Package
from tests.pipeline.test_download import content
from tests.pipeline.test_dropped_versions import at_once, empty, get, package, snapshot
from tests.support.mirror_server import Mirror
from tests.support.table import Told, failure, remedies

__all__ = ["at_once", "empty", "package", "snapshot"]


@remedies("sevsnp.packages.fetch", "{}{}")
def test_a_version_that_the_mirror_dropped(
    told: Told, package: Package, empty: Mirror, snapshot: Mirror, tmp_path: Path
) -> None:
    said = failure(lambda: get(package, empty, tmp_path / "one"))
    form = (
        r'  run: ./doitw packages_lock, or name a snapshot mirror in config\.yaml: snapshot_mirror: "https://HOST(.*)"$'
    )
    setting = re.search(form, said, re.MULTILINE)
    assert setting, said
    told.seen.add("{}{}")
    assert get(package, empty, tmp_path / "two", f"{snapshot.uri}{setting[1]}") == content()
