# SPDX-License-Identifier: Apache-2.0
"""The table of images that can be read without a kernel: each with its expected result, compared file by file."""

from pathlib import Path

import pytest

from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.archives.tar_writer import write_tar
from sevsnp.archives.tree import Tree
from sevsnp.containers.form import Form, given
from sevsnp.containers.inside import unpack_disk, unpack_tar
from sevsnp.containers.make import make_container_root
from sevsnp.errors import UserError
from sevsnp.images.adopt import adopt, read_switched_off
from sevsnp.images.bootable import bootable_entries
from sevsnp.images.host_channels import read_marks
from sevsnp.images.identity import ImageKind
from sevsnp.qemu.disk_format import disk_format
from sevsnp.qemu.whole_disk import check_not_cut
from sevsnp.system.text import printable
from tests.support.container_images import member, tar_bytes
from tests.support.image_table import as_text, different, read_table
from tests.support.images_light_others import LIGHT

GUEST_VM = Path(__file__).resolve().parents[3] / "guest-vm"
TABLE = read_table("light.yaml")


def test_each_row_has_a_function_that_makes_the_image() -> None:
    assert list(TABLE) == sorted(LIGHT)


def taken(text: str, place: Path) -> list[Entry]:
    """What the tasks make of IMAGE, up to the modules and the file system."""
    image = given(text)
    tar = image.path
    if image.form is Form.DISK:
        check_not_cut(image.path, disk_format(image.path))
        raise AssertionError("a disk for the appliance")
    if image.form is Form.DISK_INSIDE:
        unpack_disk(image=image.path, output=place / "disk")
        size = (place / "disk").stat().st_size
        return [Entry("disk", Kind.FILE, 0o644, content=Content(size, ("disk", 0), place / "disk"))]
    if image.form is Form.PACKED_TAR:
        tar = place / "unpacked.tar"
        unpack_tar(image=image.path, output=tar)
    if image.form is Form.CONTAINER:
        tar = place / "adopted.tar"
        _adopted(text, place, tar)
    source = "" if image.form is Form.TAR else text
    return bootable_entries(tar, ImageKind.VERITY, GUEST_VM / "denied.yaml", source=source)


def _adopted(text: str, place: Path, tar: Path) -> None:
    image, packages, joined = given(text), place / "packages.tar", place / "joined.tar"
    packages.write_bytes(tar_bytes([member("etc/os-release", "ID=debian\nPRETTY_NAME='Debian 13'\n")]))
    make_container_root(
        image=image.path, name=f"IMAGE={text}", tag=image.tag, docker=image.docker, packages=packages, output=joined
    )
    from sevsnp.archives.tar import read_tar

    tree = Tree(read_tar(joined).values())
    marks = read_marks(GUEST_VM / "host-channels.yaml", GUEST_VM / "judged-programs.yaml")
    off = read_switched_off(GUEST_VM / "switched-off.yaml")
    for line in adopt(tree, "ssh-ed25519 AAAA", "[Service]\nExecStart=/bin/poweroff\n", off, marks):
        print(f"  {printable(line)}")
    write_tar(tree.ordered(), tar, epoch=(1 << 33) - 1)


@pytest.mark.parametrize("case", TABLE)
def test_an_image_gives_its_expected_result(
    case: str, tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = TABLE[case]
    place, names = tmp_path / "in", {tmp_path / "in": "HERE", tmp_path: "THERE"}
    place.mkdir()
    made = LIGHT[case](place, tools)
    capsys.readouterr()
    if row.refused:
        with pytest.raises(UserError) as caught:
            taken(made.image, tmp_path)
        assert as_text(str(caught.value), names) == row.refused.splitlines()
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        return
    found = taken(made.image, tmp_path)
    assert as_text(capsys.readouterr().out, names) == row.said
    assert different(found, made.entries) == row.changed
