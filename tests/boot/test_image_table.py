# SPDX-License-Identifier: Apache-2.0
"""The table of disk images that the appliance reads: each has its expected result, compared file by file."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.archives.tar import read_tar
from sevsnp.errors import UserError
from sevsnp.images.foreign import import_image
from tests.conftest import Built
from tests.support.foreign_disks import make_maker
from tests.support.image_table import as_expected, as_text, different, read_table
from tests.support.images_heavy import BY_KERNEL, HEAVY, Ground

pytestmark = [pytest.mark.boot, pytest.mark.full]
TABLE = read_table("heavy.yaml")


def test_each_row_has_a_maker() -> None:
    assert list(TABLE) == sorted(HEAVY)


@pytest.fixture(scope="module")
def ground(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    path = tmp_path_factory.mktemp("images")
    built.doit("_appliance_initramfs", "create_new_vm")
    found = Ground(make_maker(built, path), path)
    for make in BY_KERNEL.values():
        make(found)
    yield found
    shutil.rmtree(path)  # gigabytes


def taken(built: Built, ground: Ground, image: str, root_device: str, output: Path) -> None:
    import_image(
        image=Path(image),
        root_device=root_device,
        qemu=ground.maker.appliance.qemu,
        kernel=ground.maker.appliance.kernel,
        initrd=built.build / "initramfs.appliance.cpio.zst",
        probe_cache=ground.maker.appliance.probe_cache,
        output=output,
    )


@pytest.mark.parametrize("case", TABLE)
def test_the_appliance_reads_an_image_as_its_row_says(
    case: str, built: Built, ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, own = TABLE[case], Ground(ground.maker, tmp_path, ground.made)
    made = HEAVY[case](own)
    names = {tmp_path: "HERE", ground.place: "HERE"}
    capsys.readouterr()
    if row.refused:
        with pytest.raises(UserError) as caught:
            taken(built, ground, made.image, made.root_device, tmp_path / "out.tar")
        expected = row.refused.splitlines()
        assert as_expected(as_text(str(caught.value), names), expected) == expected
        return
    taken(built, ground, made.image, made.root_device, tmp_path / "out.tar")
    assert as_text(capsys.readouterr().out, names) == row.said
    assert different(read_tar(tmp_path / "out.tar").values(), made.entries) == row.changed
