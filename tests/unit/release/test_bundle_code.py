# SPDX-License-Identifier: Apache-2.0
"""The sources in a host bundle: byte for byte as in the checkout, or no bundle is made."""

from pathlib import Path

import pytest

from sevsnp.release.bundle import _copy_code


def test_a_source_that_is_not_valid_python_makes_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path("sevsnp/host/one.py")
    source.parent.mkdir(parents=True)
    source.write_text("# a remark\nimport os\n")
    _copy_code([source], tmp_path / "lib")
    assert (tmp_path / "lib" / source).read_bytes() == source.read_bytes()
    source.write_text("import os\nimport\n")
    with pytest.raises(SyntaxError) as refused:
        _copy_code([source], tmp_path / "other")
    assert (refused.value.filename, refused.value.lineno) == (str(source), 2)
