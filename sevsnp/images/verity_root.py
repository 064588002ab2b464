"""From a root filesystem tar to a verified root: identity removed, an image, and its hash tree."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.images.filesystem import make_erofs, make_ext4
from sevsnp.images.guest import guest_entries
from sevsnp.images.identity import IdentityFilter, ImageKind, summary
from sevsnp.images.rootfs import EPOCH, Layer, directory_entry, rootfs_entries, text_entry
from sevsnp.images.tar import Entry, Kind
from sevsnp.images.tar_writer import write_tar
from sevsnp.images.verity import fixed_salt, make_verity

# What init mounts something on. Nothing can be added to a verified root later.
_MOUNT_POINTS = ("dev", "etc", "home", "proc", "run", "sys", "tmp", "var")
_INITS = ("sbin/init", "usr/sbin/init")


def make_verity_root(
    *,
    filesystem: str,
    label: str,
    tools: Path,
    image: Path,
    hash_tree: Path,
    root_hash: Path,
    rootfs: Path | None = None,
    **guest: Path,
) -> Iterator[str]:
    """Write the image (ext4 or erofs) of a tree, its hash tree and its root hash; print what was removed or added.

    The tree is that of the tar ``rootfs``, or of the parts of ``guest`` (:func:`sevsnp.images.guest.guest_entries`), of
    which no tar is written first. Yields "image" as soon as that is whole. Raises UserError for a tree without an init.
    """
    if rootfs is None:
        make_verity_image(guest_entries(**guest), Path("guest"), filesystem, tools, image)
    elif rootfs.is_file():
        make_verity_image(Layer.from_tar(rootfs).entries, rootfs, filesystem, tools, image)
    else:
        raise UserError(f"IMAGE={rootfs}: no such file, expected a root filesystem tar")
    yield "image"
    make_verity(image, hash_tree, root_hash, salt=fixed_salt(label), tools=tools.resolve())


def make_verity_image(tree: Sequence[Entry], rootfs: Path, filesystem: str, tools: Path, output: Path) -> None:
    """Write the image of ``tree``, less its identity; ``rootfs`` is what errors call it."""
    identity = IdentityFilter(ImageKind.VERITY)

    def bootable(entries: Iterable[Entry]) -> Iterator[Entry]:
        seen = {entry.name: entry for entry in entries}
        if not any(name in seen for name in _INITS):
            raise UserError(
                f"{rootfs}: no /sbin/init, expected a root filesystem with an init", "add systemd-sysv to it"
            )
        for name in _MOUNT_POINTS:
            if name not in seen:
                print(f"  added mount point: /{name}")
                seen[name] = directory_entry(name)
            elif seen[name].kind is not Kind.DIRECTORY:
                raise UserError(f"{rootfs}: /{name}: found a {seen[name].kind.name.lower()}, expected a directory")
        if "etc/machine-id" not in seen:
            # Absent, it would make every boot a first one, at which systemd sets things up from presets and questions.
            print("  added, empty: /etc/machine-id")
            seen["etc/machine-id"] = text_entry("etc/machine-id", "")
        yield from (seen[name] for name in sorted(seen))

    entries = rootfs_entries([Layer(str(rootfs), tree)], [identity, bootable])
    for line in summary(identity.removed):
        print(f"  {line}")
    if filesystem == "ext4":
        make_ext4(rootfs, output, tools=tools.resolve(), entries=entries)
        return
    cleaned = output.with_suffix(".tar")
    try:
        write_tar(entries, cleaned, epoch=EPOCH)
        make_erofs(cleaned, output, tools=tools.resolve())
    finally:
        cleaned.unlink(missing_ok=True)
