# SPDX-License-Identifier: Apache-2.0
"""Records the format in which each of a user's disk images was first opened; later content cannot change it.

The guest decides the content of a raw disk. If each run detected the format, a guest could write the header of another
format to its disk, and this machine would follow it at the next run.
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

    Unknown content is a raw disk: a guest may write anything to it. Raises UserError for a format that QEMU must not
    read, for an image that names another file, and for an image whose format has changed.
    """
    status = image.stat()
    # Another file at the same path is another disk.
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
