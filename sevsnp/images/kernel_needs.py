# SPDX-License-Identifier: Apache-2.0
"""The features of a kernel that a measured guest cannot do without, and the version in which Linux got each."""

import re
from pathlib import Path

from sevsnp.errors import UserError

_HINT = "give the package of a kernel that has it, or none: the pinned kernel has it"
# The option, whether it may be a module, the version of Linux that brought it, and what it is for.
NEEDED = (
    ("AMD_MEM_ENCRYPT", False, (4, 14), "encrypted memory"),
    ("SEV_GUEST", True, (5, 19), "attestation reports"),
    ("TSM_REPORTS", True, (6, 7), "attestation reports through configfs"),
    ("RD_ZSTD", False, (5, 9), "the compressed initramfs"),
    ("DM_VERITY", True, (3, 4), "the verified root"),
    ("DM_CRYPT", True, (2, 6), "the encrypted root"),
    ("DM_INTEGRITY", True, (4, 12), "the encrypted root"),
    ("EXT4_FS", True, (2, 6), "the root file system"),
    ("EROFS_FS", True, (5, 4), "the root file system"),
    ("OVERLAY_FS", True, (3, 18), "writable directories"),
    ("VIRTIO_PCI", True, (2, 6), "the guest's devices"),
    ("VIRTIO_BLK", True, (2, 6), "the guest's disks"),
    ("VIRTIO_NET", True, (2, 6), "the guest's network"),
)
# The option that builds a module, where a list of ours names the module and the kernel may be too old for it.
_OPTIONS = {"tsm": "TSM_REPORTS", "sev_guest": "SEV_GUEST", "erofs": "EROFS_FS", "dm_integrity": "DM_INTEGRITY"}


def check_kernel(config: Path, release: str) -> None:
    """Raises UserError if the kernel with this build configuration lacks what a measured guest needs.

    ``config`` is the file from the package's /boot, ``release`` the kernel's version as in its file names.
    """
    text = config.read_text(errors="replace")
    for option, may_be_module, _, _ in NEEDED:
        found = re.search(rf"^CONFIG_{option}=(\w)", text, re.MULTILINE)
        if found is None or not (found[1] == "y" or (may_be_module and found[1] == "m")):
            raise UserError(f"KERNEL_DEB: the kernel {release} {_lacks(option, release)}", _HINT)


def _lacks(option: str, release: str) -> str:
    _, may_be_module, since, what = next(row for row in NEEDED if row[0] == option)
    version = re.match(r"(\d+)\.(\d+)", release)
    number = ".".join(map(str, since))
    if version and (int(version[1]), int(version[2])) < since:
        return f"is too old: expected {number} or newer, which has CONFIG_{option} ({what})"
    expected = "=y or =m" if may_be_module else "=y"
    return f"was built without CONFIG_{option} ({what}): expected CONFIG_{option}{expected}, since Linux {number}"


def missing_module(name: str, release: str) -> str:
    """What to add to the message that a kernel has no module ``name``; empty if nothing is known of it."""
    option = _OPTIONS.get(name)
    return f": this kernel {_lacks(option, release)}" if option else ""
