# SPDX-License-Identifier: Apache-2.0
"""As what each of a user's disk images was first opened, so that no later content of it changes that.

What is on a raw disk is its guest's. Were the format found out at each run, a guest that writes the header of another
format to its disk would have this machine follow it the next time.
"""

import contextlib
import json
from pathlib import Path
from shlex import quote

from sevsnp.errors import UserError
from sevsnp.qemu.disk_format import CONVERT, DiskFormat, check_whole, seen_format
from sevsnp.system.files import write_atomic


def format_of(image: Path, record: Path) -> DiskFormat:
    """The format of a user's disk image, decided at its first use and kept in the JSON file ``record``.

    An unknown content is a raw disk: a guest may make anything of it. Raises UserError for a format that QEMU is not to
    read, for an image that names another file, and for one that is no longer of the kind it was.
    """
    status = image.stat()
    # Another file in its place is another disk.
    name = f"{image.resolve()} {status.st_dev}:{status.st_ino}"
    known = _read(record)
    seen = seen_format(image) or DiskFormat.RAW
    forget = f"if it is another disk now, forget what it was: rm {quote(str(record))}"
    if name in known:
        form = known[name]
        if form is DiskFormat.RAW and seen is not DiskFormat.RAW:
            kind = seen.name if isinstance(seen, DiskFormat) else seen
            print(f"IMAGE={image}: a raw disk before and now, although it begins as {kind}; {forget}", flush=True)
        elif form is not DiskFormat.RAW and form is not seen:
            raise UserError(f"IMAGE={image}: was a {form.name} image, and is not one any more", forget)
        check_whole(image, form)
        return form
    if not isinstance(seen, DiskFormat):
        raise UserError(f"IMAGE={image}: found {seen}, expected qcow2, raw, VMDK, VHDX or VHD", CONVERT)
    check_whole(image, seen)
    record.parent.mkdir(parents=True, exist_ok=True)
    kept = {**known, name: seen}
    write_atomic(record, json.dumps({each: form.value for each, form in kept.items()}, indent=1) + "\n")
    return seen


def _read(record: Path) -> dict[str, DiskFormat]:
    if not record.exists():
        return {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return {str(name): DiskFormat(value) for name, value in json.loads(record.read_text()).items()}
    raise UserError(f"{record}: not readable as a record of disk formats", f"remove it: rm {quote(str(record))}")
