"""From a root filesystem tar to a verified root: identity removed, an image, and its hash tree."""

from collections.abc import Iterable, Iterator
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
    entries = bootable_entries(rootfs, ImageKind.VERITY, **guest)
    if filesystem == "ext4":
        make_ext4(rootfs or Path("guest"), image, tools=tools.resolve(), entries=entries)
    else:
        cleaned = image.with_suffix(".tar")
        try:
            write_tar(entries, cleaned, epoch=EPOCH)
            make_erofs(cleaned, image, tools=tools.resolve())
        finally:
            cleaned.unlink(missing_ok=True)
    yield "image"
    make_verity(image, hash_tree, root_hash, salt=fixed_salt(label), tools=tools.resolve())


def bootable_entries(rootfs: Path | None, kind: ImageKind, **guest: Path) -> list[Entry]:
    """A tree as a root of its ``kind``: less what is nobody else's, and with all that init needs.

    The tree is that of the tar ``rootfs``, or of ``guest``. What was removed or added is printed. Raises UserError for
    a tree without an init.
    """
    if rootfs is not None and not rootfs.is_file():
        raise UserError(f"IMAGE={rootfs}: no such file, expected a root filesystem tar")
    layer = Layer.from_tar(rootfs) if rootfs else Layer("guest-vm", guest_entries(**guest))
    identity = IdentityFilter(kind)

    def bootable(entries: Iterable[Entry]) -> Iterator[Entry]:
        seen = {entry.name: entry for entry in entries}
        if not any(name in seen for name in _INITS):
            raise UserError(
                f"{layer.name}: no /sbin/init, expected a root filesystem with an init", "add systemd-sysv to it"
            )
        for name in _MOUNT_POINTS:
            if name not in seen:
                print(f"  added mount point: /{name}")
                seen[name] = directory_entry(name)
            elif seen[name].kind is not Kind.DIRECTORY:
                raise UserError(f"{layer.name}: /{name}: found a {seen[name].kind.name.lower()}, expected a directory")
        if "etc/machine-id" not in seen:
            # Absent, it would make every boot a first one, at which systemd sets things up from presets and questions.
            print("  added, empty: /etc/machine-id")
            seen["etc/machine-id"] = text_entry("etc/machine-id", "")
        yield from (seen[name] for name in sorted(seen))

    entries = rootfs_entries([layer], [identity, bootable])
    for line in summary(identity.removed):
        print(f"  {line}")
    return entries
