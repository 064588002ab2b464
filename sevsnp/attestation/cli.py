"""verify_report: appraise evidence of AMD hardware from files. Exit 0 accepted, 2 refused, 3 unusable input."""

import argparse
import base64
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sevsnp.attestation.appraisal import Check, Evidence, Expected, Refused
from sevsnp.attestation.report import REPORT_SIZE
from sevsnp.attestation.report_data import NONCE_SIZE, SIZE, read_public_key, ssh_report_data
from sevsnp.attestation.verify import verify_report
from sevsnp.errors import UserError
from sevsnp.vm.config import read_vm_config

ACCEPTED, REFUSED, UNUSABLE = 0, 2, 3
_MAX_FILE = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser("verify_report", "Verify an SNP attestation report against a VM config.").parse_args(
        arguments
    )
    try:
        verdict = verify_report(read_evidence(options), read_expected(options), datetime.now(UTC))
    except Refused as refused:
        return show_refusal(refused, options.json)
    except UserError as error:
        return show_unusable(error)
    show(verdict.to_json(), verdict.checks, options.json, "ACCEPTED: AMD hardware runs the guest of this VM config")
    return ACCEPTED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        # argparse would exit with 2, which here says that evidence was refused.
        self.print_usage(sys.stderr)
        self.exit(UNUSABLE, f"{self.prog}: {message}\n")


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options that both verifiers have. A wrong command line exits with 3."""
    parser = _Parser(prog=name, description=description)
    parser.add_argument("--report", metavar="FILE", type=Path, required=True, help="raw report, or get_report's JSON")
    parser.add_argument(
        "--certificates", metavar="FILE", type=Path, action="append", default=[],
        help="PEM, DER, or a certificate table; may be repeated",
    )  # fmt: skip
    parser.add_argument("--vm-config", metavar="FILE", type=Path, required=True)
    bound = parser.add_mutually_exclusive_group(required=True)
    bound.add_argument("--report-data", metavar="HEX128", help="the expected REPORT_DATA")
    bound.add_argument("--nonce", metavar="HEX64", help="the nonce sent to the guest, with --host-key")
    parser.add_argument("--host-key", metavar="FILE", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def read_evidence(options: argparse.Namespace) -> Evidence:
    """The evidence in the files of the command line."""
    report, table, certificates = _read(options.report), b"", []
    if len(report) != REPORT_SIZE and report.lstrip()[:1] == b"{":
        report, table = _read_json(report, options.report)
    for path in options.certificates:
        data = _read(path)
        if b"-----BEGIN CERTIFICATE-----" in data or data[:2] == b"\x30\x82":
            certificates.append(data)
        elif not table:
            table = data
        else:
            raise UserError(f"{path}: a second certificate table")
    return Evidence(report, table, tuple(certificates))


def read_expected(options: argparse.Namespace) -> Expected:
    """The expected values from the VM config, and REPORT_DATA from the command line."""
    config = read_vm_config(options.vm_config)
    if options.report_data is not None:
        if options.host_key:
            raise UserError("--host-key: goes with --nonce, not with --report-data")
        return Expected.of(config, _hex(options.report_data, SIZE, "--report-data"))
    keys = []
    for path in options.host_key:
        try:
            keys += [read_public_key(line) for line in _read(path).decode("ascii").splitlines() if line.strip()]
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
    try:
        return Expected.of(config, ssh_report_data(_hex(options.nonce, NONCE_SIZE, "--nonce"), keys))
    except ValueError as error:
        raise UserError(str(error), "give every host key of the guest: --host-key FILE") from error


def show(document: dict[str, Any], checks: tuple[Check, ...], as_json: bool, headline: str) -> None:
    """Print a result: JSON, or a line a check and the headline."""
    if as_json:
        print(json.dumps(document, indent=2))
        return
    for check in checks:
        print(f"{check.outcome:>12}  {check.name}{': ' if check.detail else ''}{check.detail}")
    print(headline)


def show_refusal(refused: Refused, as_json: bool) -> int:
    show(refused.to_json(), refused.checks, as_json, f"REFUSED ({refused.reason}): {refused.message}")
    return REFUSED


def show_unusable(error: UserError) -> int:
    print(error, file=sys.stderr)
    return UNUSABLE


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise UserError(f"{path}: more than {_MAX_FILE} bytes")
    return data


def _read_json(data: bytes, path: Path) -> tuple[bytes, bytes]:
    try:
        document = json.loads(data)
        return (
            base64.b64decode(document["report"], validate=True),
            base64.b64decode(document["certificates"], validate=True),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: neither a report of {REPORT_SIZE} bytes nor get_report's JSON") from error


def _hex(text: str, size: int, option: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != size:
        raise UserError(f"{option}: expected {2 * size} hex digits ({size} bytes)")
    return data


if __name__ == "__main__":
    sys.exit(main())
