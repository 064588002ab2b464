# SPDX-License-Identifier: Apache-2.0
"""An existing disk image as a root filesystem tar: read by the appliance, as only a kernel can, and never by ours."""

from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.qemu.appliance import Appliance, ApplianceDisk, run_job
from sevsnp.qemu.disk_format import disk_format
from sevsnp.system.text import printable

# What the tar may become at most. Nothing of it takes room on the disk before it is written.
_LARGEST = 4 << 40
_SECONDS = 12 * 3600.0


def import_image(
    *, image: Path, root_device: str, qemu: Path, kernel: Path, initrd: Path, probe_cache: Path, output: Path
) -> None:
    """Write the root file system on the disk ``image`` as the tar ``output``, and print where it was found.

    ``root_device`` says which one where there are several: a device as an fstab names it (/dev/vda2, /dev/GROUP/VOLUME,
    UUID=…), with ``:SUBVOLUME`` behind it if need be. Raises UserError for an image that is not whole, is encrypted,
    or has no root file system.
    """
    form = disk_format(image)
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
        raise UserError(f"IMAGE={image}: {printable(result['refused'])}", printable(result["hint"]))
    # The image's file systems have been read there: what comes from there is not more to be believed than they are.
    size, notes = result["bytes"], result["notes"]
    if not isinstance(size, int) or not 0 < size <= _LARGEST or not all(isinstance(note, str) for note in notes):
        raise UserError(f"IMAGE={image}: the appliance has given an answer that makes no sense")
    with output.open("r+b") as stream:
        stream.truncate(size)
    for note in (f"IMAGE={image}: {form.name} disk image, {result['entries']} files", *notes):
        print(f"  {printable(note)}")
