"""YAML is read strictly: nothing that stands in a file is dropped without a word."""

from pathlib import Path

import pytest
import yaml

from sevsnp.errors import UserError
from sevsnp.images.guest_config import read_guest
from sevsnp.images.lists import read_list
from sevsnp.packages.sets import read_set
from sevsnp.settings import read_config
from sevsnp.yaml_loader import load

PROJECT = Path(__file__).resolve().parents[2]


def written(directory: Path, text: str) -> Path:
    file = directory / "file.yaml"
    file.write_text(text)
    return file


def test_plain_types(tmp_path: Path) -> None:
    assert load(written(tmp_path, "a: [1, x]\nb: {c: true}\n")) == {"a": [1, "x"], "b": {"c": True}}
    assert load(written(tmp_path, "")) is None


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a stands there twice"),
        ("a:\n  - {b: 1, b: 2}\n", 2, "b stands there twice"),
        ('a: 1\n"a": 2\n', 2, "a stands there twice"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", 3, "merge key"),
        ("? [a, b]\n: 1\n", 1, "no plain text"),
        ("a: 1\n---\na: 2\n", 2, "document"),
        ("a: !!python/object:os.system {}\n", 1, "tag"),
        ("a: [1\n", 2, ""),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, line: int, problem: str) -> None:
    with pytest.raises(UserError, match=rf"file\.yaml: (not YAML: )?line {line}: .*{problem}"):
        load(written(tmp_path, text))


def test_a_doubled_key_is_refused_by_every_reader(tmp_path: Path) -> None:
    """Control: PyYAML's own loader keeps the second list, and all masks of the first are gone."""
    guest = (PROJECT / "guest-vm" / "guest.yaml").read_text() + "\nmask: [one.service]\n"
    assert yaml.safe_load(guest)["mask"] == ["one.service"]
    with pytest.raises(UserError, match="mask stands there twice"):
        read_guest(written(tmp_path, guest))
    modules = (PROJECT / "initramfs" / "modules.yaml").read_text() + "\nbase: [virtio_pci]\n"
    assert yaml.safe_load(modules)["base"] == ["virtio_pci"]
    with pytest.raises(UserError, match="base stands there twice"):
        read_list(written(tmp_path, modules), "base", "luks", "appliance", "emulated")
    packages = (PROJECT / "guest-vm" / "packages.yaml").read_text() + "\npackages: [less]\n"
    with pytest.raises(UserError, match="packages stands there twice"):
        read_set(written(tmp_path, packages), "guest")
    with pytest.raises(UserError, match="cpus is set twice"):
        read_config(written(tmp_path, "cpus: 1\ncpus: 2\n"))
