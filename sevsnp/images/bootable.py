# SPDX-License-Identifier: Apache-2.0
"""Makes a bootable root of a tree, from a tar or the guest's own parts; both workflows put it on their disks."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from shlex import quote

from sevsnp.archives.rootfs import Layer, directory_entry, filtered, merge, text_entry
from sevsnp.archives.tar import Entry, Kind
from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError, called
from sevsnp.images.architecture import INITS, check_architecture
from sevsnp.images.attributes import AttributeFilter
from sevsnp.images.guest import guest_entries
from sevsnp.images.guest_check import remarks
from sevsnp.images.identity import Change, DenyList, IdentityFilter, ImageKind, kept_lines, summary
from sevsnp.qemu.disk_format import is_disk_image
from sevsnp.system.text import printable

# init mounts something on each. Nothing can be added to a verified root later.
_MOUNT_POINTS = ("dev", "etc", "home", "proc", "run", "sys", "tmp", "var")
_AS_LISTED = Change()


def _with_parents(path: str) -> list[str]:
    """Each directory on the way to the absolute ``path``, without the first slash; none for no path."""
    parts = [part for part in path.split("/") if part]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _above(seen: Mapping[str, Entry]) -> str:
    """The directory in which a root file system lies that was packed with a prefix; empty if there is none."""
    below = (name.removesuffix(f"/{init}") for name in seen for init in INITS if name.endswith(f"/{init}"))
    # A link sbin -> usr/sbin gives two answers, of which the shorter one is right.
    return min((each for each in below if f"{each}/etc" in seen), key=len, default="")


def bootable_entries(
    rootfs: Path | None,
    kind: ImageKind,
    denied: Path,
    change: Change = _AS_LISTED,
    source: str = "",
    data_path: str = "",
    **guest: Path,
) -> list[Entry]:
    """A tree as a root of its ``kind``: without identity and secrets, and with everything that init needs.

    The tree is that of the tar ``rootfs``, or of ``guest``; ``denied`` is the deny-list, ``change`` the user's own
    changes of it, ``source`` what the user gave, ``data_path`` a further mount point. What is denied goes first; only
    then are extended attributes looked at. Prints what was removed or added, and what probably does not work. Raises
    UserError for a tree without an init.
    """
    if rootfs is not None and not rootfs.is_file():
        is_disk_image(rootfs)  # names what is no file
        found = "found a directory" if rootfs.is_dir() else "no such file"
        raise UserError(f"IMAGE={rootfs}: {found}, expected a root filesystem tar or a disk image")
    name = source or str(rootfs or "guest-vm")
    with called(rootfs or Path(name), name):
        tree = merge([Layer.from_tar(rootfs)]).values() if rootfs else guest_entries(**guest)
    identity = IdentityFilter(kind, DenyList(denied, kind, change))
    attributes = AttributeFilter()

    def bootable(entries: Iterable[Entry]) -> Iterator[Entry]:
        seen = {entry.name: entry for entry in entries}
        if seen.keys().isdisjoint(INITS):
            if rootfs and (above := _above(seen)):
                raise UserError(
                    f"{name}: its root lies below {above}/, expected names that begin at the root",
                    "pack it from inside that directory, as root, and give what comes out: "
                    f"tar -xpf {quote(name)} && tar -C {quote(above)} -cf {quote(f'{name}.root')} .",
                )
            raise UserError(
                f"{name}: no /sbin/init, expected a root filesystem with an init",
                "add a package with an init to it, as Debian's systemd-sysv",
            )
        check_architecture(Tree(seen.values()), name)
        for point in (*_MOUNT_POINTS, *_with_parents(data_path)):
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

    entries = filtered(tree, [identity, bootable, attributes])
    for line in (*summary(identity.removed), *kept_lines(identity), *attributes.lines()):
        print(f"  {printable(line)}")
    for line in remarks(entries):
        print(f"  check: {printable(line)}")
    return entries
