# SPDX-License-Identifier: Apache-2.0
"""Makes a verified root from a root file system tar: removes identity, makes an image and its hash tree."""

from collections.abc import Iterator
from pathlib import Path

from sevsnp.archives.rootfs import EPOCH
from sevsnp.archives.tar_writer import write_tar
from sevsnp.images.bootable import bootable_entries
from sevsnp.images.copied_size import write_copied_sizes
from sevsnp.images.filesystem import make_erofs, make_ext4
from sevsnp.images.identity import Change, ImageKind
from sevsnp.images.verity import make_verity
from sevsnp.vm_config.verity_word import fixed_salt


def make_verity_root(
    *,
    filesystem: str,
    label: str,
    denied: Path,
    tools: Path,
    image: Path,
    hash_tree: Path,
    root_hash: Path,
    copied: Path | None = None,
    rootfs: Path | None = None,
    keep: str = "",
    drop: str = "",
    source: str = "",
    data_path: str = "",
    **guest: Path,
) -> Iterator[str]:
    """Write the image (ext4 or erofs) of a tree, its hash tree and its root hash; print what was removed or added.

    The tree is that of the tar ``rootfs``, or of the parts of ``guest`` (:func:`sevsnp.images.guest.guest_entries`);
    for the latter no tar is written. ``denied`` is the deny-list, which the patterns ``keep`` and ``drop`` change.
    ``source`` is what the user gave, ``data_path`` a mount point that the tree gets if it lacks it. ``copied`` gets the
    sizes of what WRITABLE=copy copies. Yields "image" as soon as the image is complete. Raises UserError for a tree
    without an init.
    """
    entries = bootable_entries(rootfs, ImageKind.VERITY, denied, Change.parse(keep, drop), source, data_path, **guest)
    if filesystem == "ext4":
        make_ext4(rootfs or Path("guest"), image, tools=tools.resolve(), entries=entries)
    else:
        cleaned = image.with_suffix(".tar")
        try:
            # mkfs.erofs does not know GNU tar's format for holes.
            write_tar(entries, cleaned, epoch=EPOCH, holes=False)
            make_erofs(cleaned, image, tools=tools.resolve())
        finally:
            cleaned.unlink(missing_ok=True)
    if copied is not None:
        write_copied_sizes(entries, copied)
    yield "image"
    make_verity(image, hash_tree, root_hash, salt=fixed_salt(label), tools=tools.resolve())
