# SPDX-License-Identifier: Apache-2.0
"""The owner's certificate for measured values: the same as from the file, also when it is remembered."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.keys import pairs
from sevsnp.measurement.owner import owner_der
from sevsnp.store.session import Options
from tests.support.makers import new_run


@pytest.fixture
def certificate(tmp_path: Path) -> Iterator[Path]:
    with new_run(Options(tmp_path / "cache")):
        path = pairs.ensure_keys(tmp_path / "keys").owner_certificate
        time.sleep(0.03)  # older than a tick of the clock: such a file is remembered
        yield path


def test_it_is_read_once_for_each_content(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = pairs.ensure_keys(tmp_path / "other").owner_certificate
    one, two = pairs.certificate_der(certificate), pairs.certificate_der(other)
    read = pairs.certificate_der
    paths: list[Path] = []

    def reading(path: Path) -> bytes:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(pairs, "certificate_der", reading)
    assert [owner_der(path) for path in (certificate, other, certificate)] == [one, two, one]
    assert paths == [certificate, other]
    certificate.write_bytes(other.read_bytes())
    assert owner_der(certificate) == two


def test_a_file_that_is_none_is_refused_each_time(certificate: Path, tmp_path: Path) -> None:
    certificate.write_text("none")
    for _ in range(2):
        with pytest.raises(UserError, match="expected a PEM certificate"):
            owner_der(certificate)
    with pytest.raises(UserError, match="expected a PEM certificate"):
        owner_der(tmp_path / "absent")


def test_one_that_changes_meanwhile_is_refused(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changing(path: Path) -> bytes:
        time.sleep(0.03)
        path.write_bytes(b"another")
        return b"DER"

    monkeypatch.setattr(pairs, "certificate_der", changing)
    with pytest.raises(UserError, match="changed while it was read"):
        owner_der(certificate)
