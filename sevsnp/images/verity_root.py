"""From a root filesystem tar to a verified root: identity removed, an image, and its hash tree."""

import stat
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.images.filesystem import make_erofs, make_ext4
from sevsnp.images.identity import IdentityFilter, ImageKind, summary
from sevsnp.images.rootfs import Layer, make_rootfs
from sevsnp.images.verity import fixed_salt, make_verity


def make_verity_image(*, rootfs: Path, filesystem: str, tools: Path, output: Path) -> None:
    """Write the image (ext4 or erofs) of the tree in the tar ``rootfs``, and print what was removed from it."""
    if not rootfs.is_file() or not stat.S_ISREG(rootfs.stat().st_mode):
        raise UserError(f"IMAGE={rootfs}: no such file, expected a root filesystem tar")
    cleaned = output.with_suffix(".tar")
    identity = IdentityFilter(ImageKind.VERITY)
    try:
        make_rootfs([Layer.from_tar(rootfs)], cleaned, filters=[identity])
        for line in summary(identity.removed):
            print(f"  {line}")
        make = {"ext4": make_ext4, "erofs": make_erofs}[filesystem]
        make(cleaned, output, tools=tools.resolve())
    finally:
        cleaned.unlink(missing_ok=True)


def make_verity_tree(*, image: Path, label: str, tools: Path, hash_tree: Path, root_hash: Path) -> None:
    """Write the hash tree of ``image`` and its root hash."""
    make_verity(image, hash_tree, root_hash, salt=fixed_salt(label), tools=tools.resolve())
