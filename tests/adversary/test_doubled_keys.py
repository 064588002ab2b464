# SPDX-License-Identifier: Apache-2.0
"""A key that stands twice in a YAML file: a list of what is switched off would silently lose its first half."""

from pathlib import Path

import pytest
import yaml

from sevsnp.errors import UserError
from sevsnp.images.guest_config import read_guest
from sevsnp.images.lists import read_list
from sevsnp.packages.sets import read_set
from sevsnp.settings.resolved import read_config
from tests.conftest import PROJECT


def written(directory: Path, text: str) -> Path:
    file = directory / "file.yaml"
    file.write_text(text)
    return file


def test_a_doubled_key_is_refused_by_every_reader(tmp_path: Path) -> None:
    """Control: PyYAML's own loader keeps the second list, and all masks of the first are gone."""
    guest = (PROJECT / "guest-vm" / "guest.yaml").read_text() + "\nmask: [one.service]\n"
    assert yaml.safe_load(guest)["mask"] == ["one.service"]
    with pytest.raises(UserError, match="mask is given twice"):
        read_guest(written(tmp_path, guest))
    modules = (PROJECT / "initramfs" / "modules.yaml").read_text() + "\nbase: [virtio_pci]\n"
    assert yaml.safe_load(modules)["base"] == ["virtio_pci"]
    with pytest.raises(UserError, match="base is given twice"):
        read_list(written(tmp_path, modules), "base", "luks", "appliance", "emulated")
    packages = (PROJECT / "guest-vm" / "packages.yaml").read_text() + "\npackages: [less]\n"
    with pytest.raises(UserError, match="packages is given twice"):
        read_set(written(tmp_path, packages), "guest")
    with pytest.raises(UserError, match="cpus is set twice"):
        read_config(written(tmp_path, "cpus: 1\ncpus: 2\n"))
