# SPDX-License-Identifier: Apache-2.0
"""Make the measured command lines of both workflows."""

import base64
import hashlib
from pathlib import Path

from sevsnp.measurement.copied_size import check_copied_sizes
from sevsnp.measurement.owner import owner_der
from sevsnp.vm_config.cmdline import build_cmdline, luks_words, verity_words
from sevsnp.vm_config.verity_word import BLOCK_SIZE, VerityParameters, fixed_salt


def make_verity_cmdline(
    *,
    image: Path,
    roothash: Path,
    label: str,
    rootfs: str,
    writable: str,
    tmpfs: dict[str, int],
    acpi: bool,
    platform: str,
    output: Path,
    dns: str = "",
    copied: Path | None = None,
    data_header: Path | None = None,
    data_tables: Path | None = None,
    data_path: str = "",
    owner_certificate: Path | None = None,
) -> None:
    """Write the measured command line of the integrity workflow, one line without a newline.

    The salt was made from ``label``. ``tmpfs`` has sizes in bytes, by directory; ``dns`` is the setting GUEST_DNS.
    ``data_header`` is the header of a data disk, ``data_tables`` the digest of its tables, ``data_path`` its mount
    point. Raises UserError if ``writable`` is copy and a directory of ``copied`` (the image's own sizes) does not fit.
    """
    if copied is not None and writable == "copy":
        check_copied_sizes(copied, tmpfs)
    data = owner = ""
    if data_header and data_tables and owner_certificate:
        header = data_header.read_bytes()
        data = f"{len(header)}:{hashlib.sha256(header).hexdigest()}:{data_tables.read_text().strip()}:{data_path}"
        owner = base64.b64encode(owner_der(owner_certificate)).decode()
    parameters = VerityParameters(
        data_blocks=image.stat().st_size // BLOCK_SIZE,
        root_hash=roothash.read_text().strip(),
        salt=fixed_salt(label),
    )
    words = verity_words(
        table=parameters.word(),
        rootfs=rootfs,
        writable=writable,
        tmpfs=tmpfs,
        acpi=acpi,
        emulated=platform == "emulated",
        dns=dns,
        data=data,
        owner=owner,
    )
    output.write_text(build_cmdline(word.text for word in words))


def make_luks_cmdline(
    *,
    header: Path,
    header_digest: Path,
    tables_digest: Path,
    owner_certificate: Path,
    acpi: bool,
    reports: str,
    platform: str,
    output: Path,
    dns: str = "",
) -> None:
    """Write the measured command line of the encrypted workflow, one line without a newline.

    ``dns`` is the setting GUEST_DNS.
    """
    words = luks_words(
        header=f"{header.stat().st_size}:{header_digest.read_text().strip()}",
        tables=tables_digest.read_text().strip(),
        owner=base64.b64encode(owner_der(owner_certificate)).decode(),
        acpi=acpi,
        reports=reports,
        emulated=platform == "emulated",
        dns=dns,
    )
    output.write_text(build_cmdline(word.text for word in words))
