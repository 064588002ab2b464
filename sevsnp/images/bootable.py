# SPDX-License-Identifier: Apache-2.0
"""Makes a bootable root of a tree, from a tar or the guest's own parts; both workflows put it on their disks."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from sevsnp.archives.rootfs import Layer, directory_entry, filtered, merge, text_entry
from sevsnp.archives.tar import Entry, Kind
from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError
from sevsnp.images.architecture import INITS, check_architecture
from sevsnp.images.guest import guest_entries
from sevsnp.images.guest_check import remarks
from sevsnp.images.identity import DenyList, IdentityFilter, ImageKind, summary
from sevsnp.system.text import printable

# init mounts something on each. Nothing can be added to a verified root later.
_MOUNT_POINTS = ("dev", "etc", "home", "proc", "run", "sys", "tmp", "var")


def bootable_entries(rootfs: Path | None, kind: ImageKind, denied: Path, **guest: Path) -> list[Entry]:
    """A tree as a root of its ``kind``: without identity and secrets, and with everything that init needs.

    The tree is that of the tar ``rootfs``, or of ``guest``; ``denied`` is denied.yaml. Prints what was removed or
    added, and what probably does not work. Raises UserError for a tree without an init.
    """
    if rootfs is not None and not rootfs.is_file():
        raise UserError(f"IMAGE={rootfs}: no such file, expected a root filesystem tar or a disk image")
    name = str(rootfs or "guest-vm")
    tree = merge([Layer.from_tar(rootfs)]).values() if rootfs else guest_entries(**guest)
    identity = IdentityFilter(kind, DenyList(denied))

    def bootable(entries: Iterable[Entry]) -> Iterator[Entry]:
        seen = {entry.name: entry for entry in entries}
        if seen.keys().isdisjoint(INITS):
            raise UserError(
                f"{name}: no /sbin/init, expected a root filesystem with an init",
                "add a package with an init to it, as Debian's systemd-sysv",
            )
        check_architecture(Tree(seen.values()), name)
        for point in _MOUNT_POINTS:
            if point not in seen:
                print(f"  added mount point: /{point}")
                seen[point] = directory_entry(point)
            elif seen[point].kind is not Kind.DIRECTORY:
                raise UserError(f"{name}: /{point}: found a {seen[point].kind.name.lower()}, expected a directory")
        if "etc/machine-id" not in seen:
            # Without this file every boot would be a first boot: systemd would then use presets and ask questions.
            print("  added, empty: /etc/machine-id")
            seen["etc/machine-id"] = text_entry("etc/machine-id", "")
        yield from (seen[path] for path in sorted(seen))

    entries = filtered(tree, [identity, bootable])
    for line in summary(identity.removed):
        print(f"  {line}")
    for line in remarks(entries):
        print(f"  check: {printable(line)}")
    return entries
