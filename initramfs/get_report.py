#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask this guest's secure processor for an SNP attestation report.

This single file needs only the standard library and Python 3.8 or later. It runs in any SNP guest:

    get_report --report-data HEX128                     report and certificates as JSON
    get_report --nonce HEX64 --host-key FILE.pub ...    bind a verifier's nonce and the SSH host keys
    get_report --report-data HEX128 --format raw -o report.bin --certificates table.bin
    get_report --nonce HEX64 --vmpl 1                   for software that runs under an SVSM

Sources: Linux Documentation/ABI/testing/configfs-tsm-report and include/uapi/linux/sev-guest.h. The ioctl interface
serves kernels before 6.7, which have no configfs-tsm.
"""

# Plain os and open calls, as in the documents of the interfaces.

from __future__ import annotations

import argparse
import array
import base64
import binascii
import errno
import fcntl
import glob
import hashlib
import json
import os
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Evidence = dict[str, str | int]

REPORT_SIZE = 1184
REPORT_DATA_SIZE = 64
NONCE_SIZE = 32
SSH_LABEL = b"openend2e-sevsnp ssh host keys v1\0"
HOST_KEYS = "/etc/ssh/ssh_host_*_key.pub"


class ReportError(Exception):
    """There is no report; the message is one line for the user."""


class ConfigfsTsm:
    """/sys/kernel/config/tsm/report, Linux 6.7 and later."""

    name = "configfs-tsm"

    def __init__(self, root: str = "/sys/kernel/config/tsm/report") -> None:
        self.root = root

    def available(self) -> bool:
        return os.path.isdir(self.root)

    def fetch(self, report_data: bytes, vmpl: int | None = None) -> tuple[bytes, bytes]:
        """The report (1184 bytes) and the certificate table, b"" if the host gives none."""
        entry = f"{self.root}/get-report-{os.getpid()}-{os.urandom(8).hex()}"
        try:
            os.mkdir(entry)
        except OSError as error:
            # ENXIO: the kernel has the interface, but no provider for it.
            hint = ": this is not an SNP guest" if error.errno == errno.ENXIO else ""
            raise ReportError(f"{self.root}: {error.strerror}{hint}") from error
        try:
            return self._fetch(entry, report_data, vmpl)
        finally:
            os.rmdir(entry)

    def _fetch(self, entry: str, report_data: bytes, vmpl: int | None) -> tuple[bytes, bytes]:
        provider = _read(entry + "/provider").decode("ascii", "replace").strip()
        if provider != "sev_guest":
            raise ReportError(f"{self.root}: provider {provider}, expected sev_guest")
        with open(entry + "/inblob", "wb", buffering=0) as stream:
            stream.write(report_data)
        if vmpl is not None:
            try:
                with open(entry + "/privlevel", "wb", buffering=0) as stream:
                    stream.write(b"%d" % vmpl)
            except OSError as error:
                raise ReportError(f"{self.root}: VMPL {vmpl}: {error.strerror}") from error
        # Every write to the entry increments `generation`. Another number means that another process has written to it.
        writes = 1 if vmpl is None else 2
        expected = _generation(entry)
        report = _read(entry + "/outblob")
        try:
            certificates = _read(entry + "/auxblob")
        except OSError:
            certificates = b""
        if expected != writes or _generation(entry) != expected:
            raise ReportError(f"{self.root}: the entry was changed by another process")
        return report, certificates


class SevGuest:
    """/dev/sev-guest, by ioctl."""

    name = "sev-guest"
    _GET_REPORT, _GET_EXT_REPORT = 0xC0205300, 0xC0205302  # _IOWR('S', 0 and 2, 32 bytes)
    _CERTIFICATES = 0x4000  # the kernel's maximum (SEV_FW_BLOB_MAX_SIZE)
    _INVALID_LENGTH, _BUSY = 1, 2
    _TRIES = 10

    def __init__(self, device: str = "/dev/sev-guest") -> None:
        self.device = device

    def available(self) -> bool:
        return os.path.exists(self.device)

    def fetch(self, report_data: bytes, vmpl: int | None = None) -> tuple[bytes, bytes]:
        """The report (1184 bytes), for VMPL 0 if ``vmpl`` is None, and the certificate table, b"" without one."""
        # struct snp_report_req: user_data[64], vmpl, rsvd[28]
        request = array.array("B", report_data + struct.pack("<I28x", vmpl or 0))
        certificates = array.array("B", bytes(self._CERTIFICATES))
        # struct snp_ext_report_req: snp_report_req, certs_address, certs_len, padding
        tail = struct.pack("<QI4x", certificates.buffer_info()[0], len(certificates))
        extended = array.array("B", request.tobytes() + tail)
        try:
            device = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ReportError(f"{self.device}: {error.strerror}") from error
        try:
            report = self._call(device, self._GET_EXT_REPORT, extended)
            if report is None:  # the host's certificates do not fit: the verifier gets them elsewhere
                report = self._call(device, self._GET_REPORT, request)
                certificates = array.array("B")
        finally:
            os.close(device)
        if report is None:
            raise ReportError(f"{self.device}: the host refuses the request's length")
        table = certificates.tobytes()
        return report, table if any(table) else b""

    def _call(self, device: int, command: int, request: array.array[int]) -> bytes | None:
        """The report; None where the host says that the certificates need more room."""
        response = array.array("B", bytes(4000))  # struct snp_report_resp
        for attempt in range(self._TRIES):
            # struct snp_guest_request_ioctl: msg_version, req_data, resp_data, fw_error and vmm_error
            addresses = (request.buffer_info()[0], response.buffer_info()[0])
            message = array.array("B", struct.pack("<B7xQQQ", 1, *addresses, 0))
            try:
                fcntl.ioctl(device, command, message, True)
            except OSError as error:
                firmware, host = struct.unpack_from("<II", message, 24)
                if host == self._INVALID_LENGTH:
                    return None
                if (host == self._BUSY or error.errno in (errno.EAGAIN, errno.EINTR)) and attempt < self._TRIES - 1:
                    time.sleep(min(0.1 * 2**attempt, 2.0))
                    continue
                text = "{}: {} (firmware error {:#x}, host error {:#x})"
                raise ReportError(text.format(self.device, error.strerror, firmware, host)) from error
            # status, report_size, 24 reserved bytes, the report
            status, size = struct.unpack_from("<II", response, 0)
            if status:
                raise ReportError(f"{self.device}: the firmware answers status {status:#x}")
            if size != REPORT_SIZE:
                raise ReportError(f"{self.device}: found {size} bytes, expected {REPORT_SIZE}")
            return response.tobytes()[32 : 32 + REPORT_SIZE]
        raise AssertionError("the last attempt returns or raises")


# In the order in which they are tried. Another layer may append a provider of its own. A provider has ``name``,
# ``available()`` and ``fetch(report_data)``; if a VMPL is requested, it is the second argument of ``fetch``. A provider
# may have ``says()``, which returns the marks that each of its documents must have at the top level. A mark that is
# true there must also be in the name of an output file.
PROVIDERS: list[Any] = [ConfigfsTsm(), SevGuest()]


def get_report(report_data: bytes, vmpl: int | None = None) -> Evidence:
    """Evidence for REPORT_DATA (64 bytes): ``report`` and ``certificates`` in base64, ``provider``, ``vmpl``.

    The marks from the provider's ``says()`` come first. Raises ReportError with the reason of every provider that was
    tried.
    """
    if len(report_data) != REPORT_DATA_SIZE:
        raise ReportError(f"report data: found {len(report_data)} bytes, expected {REPORT_DATA_SIZE}")
    problems = []
    for provider in PROVIDERS:
        if not provider.available():
            continue
        try:
            report, certificates = provider.fetch(report_data, *([] if vmpl is None else [vmpl]))
            if len(report) != REPORT_SIZE or report[0x50:0x90] != report_data:
                raise ReportError(f"{provider.name}: a report that does not carry the report data")
            if vmpl is not None and struct.unpack_from("<I", report, 0x30)[0] != vmpl:
                raise ReportError(f"{provider.name}: a report of another VMPL than {vmpl}")
        except (ReportError, OSError, ValueError, KeyError, TypeError) as error:
            problems.append(str(error) or type(error).__name__)
            continue
        return {
            **getattr(provider, "says", dict)(),
            "report": base64.b64encode(report).decode(),
            "certificates": base64.b64encode(certificates).decode(),
            "provider": provider.name,
            "vmpl": struct.unpack_from("<I", report, 0x30)[0],
        }
    names = ", ".join(provider.name for provider in PROVIDERS)
    raise ReportError("; ".join(problems) or f"this is not an SNP guest: none of {names} is there")


def _marks(evidence: Evidence) -> list[str]:
    return [name for name, value in evidence.items() if value is True]


def ssh_report_data(nonce: bytes, host_keys: list[bytes]) -> bytes:
    """REPORT_DATA (64 bytes) that binds a nonce (32 bytes) and all SSH host keys, as the verifier computes it."""
    digest = hashlib.sha512(SSH_LABEL)
    for part in [nonce, *sorted(host_keys)]:
        digest.update(struct.pack(">Q", len(part)) + part)
    return digest.digest()


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as stream:
        return stream.read() or b""


def _generation(entry: str) -> int:
    return int(_read(entry + "/generation"))


def _hexadecimal(size: int) -> object:
    def parse(text: str) -> bytes:
        try:
            data = binascii.unhexlify(text)
        except (ValueError, binascii.Error):
            data = b""
        if len(data) != size:
            raise argparse.ArgumentTypeError(f"expected {2 * size} hex digits")
        return data

    return parse


def _host_keys(paths: list[str]) -> list[bytes]:
    keys = []
    for path in paths or sorted(glob.glob(HOST_KEYS)):
        try:
            keys.append(base64.b64decode(_read(path).split()[1], validate=True))
        except (OSError, IndexError, binascii.Error) as error:
            raise ReportError(f"{path}: not an OpenSSH public key") from error
    if not keys or len(set(keys)) != len(keys):
        raise ReportError("host keys: expected at least one, each once")
    return keys


def command_line() -> argparse.ArgumentParser:
    """The options and what they mean."""
    parser = argparse.ArgumentParser(
        prog="get_report",
        description="Ask the secure processor for a report.",
        epilog="exit: 0 done, 1 no report, 2 wrong command line",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--report-data", metavar="HEX128", type=_hexadecimal(REPORT_DATA_SIZE),  # type: ignore[arg-type]
                      help="the REPORT_DATA to ask for")  # fmt: skip
    what.add_argument("--nonce", metavar="HEX64", type=_hexadecimal(NONCE_SIZE),  # type: ignore[arg-type]
                      help="a verifier's nonce, bound together with the SSH host keys")  # fmt: skip
    help_text = f"an SSH host public key that --nonce binds; default: all {HOST_KEYS}"
    parser.add_argument("--host-key", metavar="FILE", action="append", default=[], help=help_text)
    parser.add_argument("--format", choices=("json", "raw"), default="json",
                        help="json has the certificates, too; default: json")  # fmt: skip
    parser.add_argument("--vmpl", type=int, choices=range(4), help="privilege level to ask for; default: the kernel's")
    parser.add_argument("--certificates", metavar="FILE", help="write the host's certificate table there")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = command_line().parse_args(arguments)
    try:
        if options.nonce is not None:
            report_data = ssh_report_data(options.nonce, _host_keys(options.host_key))
        else:
            report_data = options.report_data
        evidence = get_report(report_data, options.vmpl)
        for mark in _marks(evidence):
            if options.output and mark not in os.path.basename(options.output):
                raise ReportError(f"{options.output}: expected a name with {mark} in it")
        if options.certificates:
            with open(options.certificates, "wb") as stream:
                stream.write(base64.b64decode(str(evidence["certificates"])))
        output = (json.dumps(evidence, indent=2) + "\n").encode()
        if options.format == "raw":
            output = base64.b64decode(str(evidence["report"]))
        if options.output:
            with open(options.output, "wb") as stream:
                stream.write(output)
        else:
            sys.stdout.buffer.write(output)
    except (ReportError, OSError) as error:
        print(f"get_report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
