# SPDX-License-Identifier: Apache-2.0
"""Converts an existing disk image to a root file system tar.

The appliance's kernel reads the image, never the host's.
"""

from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.qemu.appliance import Appliance, ApplianceDisk, fields, run_job
from sevsnp.qemu.disk_format import disk_format
from sevsnp.qemu.whole_disk import check_not_cut
from sevsnp.system.text import printable

# Bytes. The maximum size of the tar. It takes no room on the disk before it is written.
_LARGEST = 4 << 40
_SECONDS = 12 * 3600.0


def import_image(
    *, image: Path, root_device: str, qemu: Path, kernel: Path, initrd: Path, probe_cache: Path, output: Path
) -> None:
    """Write the root file system on the disk ``image`` as the tar ``output``, and print where it was found.

    ``root_device`` selects one of several root file systems: a device as in an fstab (/dev/vda2, /dev/GROUP/VOLUME,
    UUID=…), followed by ``:SUBVOLUME`` if needed. Raises UserError for an image that is incomplete or encrypted, or
    that has no root file system.
    """
    form = disk_format(image)
    check_not_cut(image, form)
    with output.open("wb") as stream:
        stream.truncate(_LARGEST)
    result = run_job(
        Appliance(qemu=qemu, kernel=kernel, initrd=initrd, probe_cache=probe_cache),
        "import_image",
        {"root_device": root_device},
        disks=[
            ApplianceDisk("image", image, form.value, read_only=True),
            ApplianceDisk("output", output),
        ],
        seconds=_SECONDS,
    )
    if "refused" in result:
        fields(result, f"IMAGE={image}", {"refused": str, "hint": str})
        raise UserError(f"IMAGE={image}: {printable(result['refused'])}", printable(result["hint"]))
    size, entries, notes = fields(result, f"IMAGE={image}", {"bytes": int, "entries": int, "notes": list})
    if not 0 < size <= _LARGEST or not all(isinstance(note, str) for note in notes):
        raise UserError(f"IMAGE={image}: the appliance gave an invalid answer")
    with output.open("r+b") as stream:
        stream.truncate(size)
    for note in (f"IMAGE={image}: {form.name} disk image, {entries} files", *notes):
        print(f"  {printable(note)}")
