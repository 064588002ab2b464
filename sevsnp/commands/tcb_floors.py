# SPDX-License-Identifier: Apache-2.0
"""tcb-floors: make a signed file of minimum TCB versions from authentic reports. Exit 0, 2, 3 or 64."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sevsnp.attestation import api
from sevsnp.attestation.floors_file import FloorsFile, lowest, parse_file, read_floors, read_signed, render_file
from sevsnp.attestation.report import Report
from sevsnp.commands.arguments import Parser, guarded
from sevsnp.commands.measure import DONE
from sevsnp.commands.verify_report import REFUSED, UNDECIDED, add_sources, endorser, read_file
from sevsnp.errors import UserError
from sevsnp.system.text import printable
from sevsnp.vm_config.config import Tcb
from sevsnp.vm_config.processor import Cpuid

if TYPE_CHECKING:
    from sevsnp.keys.signature import SigningKey

_OTHER_KEY = "if you signed it with another key, give that one's public key: --previous-key FILE"


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line().parse_args(arguments)
    return guarded(lambda: _make(options), options.output)


def command_line() -> argparse.ArgumentParser:
    """The options and what they mean."""
    parser = Parser(
        prog="tcb-floors",
        description="Write a signed file of minimum TCB versions for tcb_floors in a policy: for each processor, the "
        "highest that all of the given reports meet. Only authentic reports count.",
        epilog="exit: 0 done, 2 not authentic, 3 undecided, 64 wrong command line or file",
    )
    parser.add_argument("--input", "--report", metavar="FILE", type=Path, required=True, action="append",
                        dest="reports", help="a report in any form, repeatable")  # fmt: skip
    parser.add_argument("--certificates", metavar="FILE", type=Path, action="append", default=[],
                        help="PEM, DER or a certificate table, repeatable")  # fmt: skip
    parser.add_argument("--key", metavar="FILE", type=Path, required=True,
                        help="your private key, Ed25519 or ECDSA, in PEM")  # fmt: skip
    parser.add_argument("--expires", metavar="DAY", type=_day, required=True, help="its last day, as 2026-12-31")
    parser.add_argument(
        "--previous", metavar="FILE", type=Path,
        help="the previous edition, with FILE.sig beside it: no floor falls below its floors",
    )  # fmt: skip
    parser.add_argument("--previous-key", metavar="FILE", type=Path,
                        help="the public key of the previous edition, if it was another one")  # fmt: skip
    parser.add_argument("--at", metavar="DAY", type=_day, help="when certificates must be valid (default: today)")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="and FILE.sig beside it")
    add_sources(parser)
    return parser


def _make(options: argparse.Namespace) -> int:
    from sevsnp.keys.signature import load_signing_key, sign
    from sevsnp.system.files import write_atomic

    key = load_signing_key(options.key)
    now = datetime.now(UTC)
    before = _previous(options, key)
    if options.expires < now.date():
        raise UserError(f"--expires {options.expires}: expected a day that has not passed")
    seen: list[tuple[Cpuid, Tcb]] = []
    for path in options.reports:
        code = _look(path, options, now, seen)
        if code != DONE:
            return code
    floors = lowest(seen, before.floors if before else ())
    made = FloorsFile(before.version + 1 if before else 1, now.date(), options.expires, floors)
    data = render_file(made)
    parse_file(data, options.output)  # what could not be read back is not written
    signature = options.output.with_name(f"{options.output.name}.sig")
    # The old signature goes first, so that it is never beside the new file.
    signature.unlink(missing_ok=True)
    write_atomic(options.output, data)
    write_atomic(signature, sign(key, data))
    for floor in made.floors:
        print(f"{floor.processor}: {floor.tcb.setting()}")
    return DONE


def _previous(options: argparse.Namespace, key: "SigningKey") -> FloorsFile | None:
    """The edition before, if one was given. Its floors get this signature, so it must have the owner's, too."""
    if options.previous is None:
        if options.previous_key:
            raise UserError("--previous-key: goes with --previous")
        return None
    if options.previous_key:
        return read_floors(options.previous, options.previous_key)
    return read_signed(options.previous, key.public_key(), options.key, _OTHER_KEY)


def _look(path: Path, options: argparse.Namespace, now: datetime, seen: list[tuple[Cpuid, Tcb]]) -> int:
    """Add the TCB versions of an authentic report to ``seen`` and return 0, or say what it is and return its code."""
    from sevsnp.attestation.report import parse_report
    from sevsnp.attestation.verifier import amd_service, inspect_report

    evidence = api.read_evidence(read_file(path), [read_file(one) for one in options.certificates], str(path))
    at = datetime.combine(options.at, datetime.min.time(), UTC) if options.at else now
    found = inspect_report(evidence, at, endorser=endorser(options, amd_service))
    if not found.authentic:
        word, code = ("UNDECIDED", UNDECIDED) if found.authentic is None else ("NOT AUTHENTIC", REFUSED)
        print(printable(f"{path}: {word}: {found.reason}"), file=sys.stderr)
        return code
    report: Report = parse_report(evidence.report, "Milan")
    if report.cpuid is None:
        raise UserError(
            f"{path}: a report of version 2 does not name its processor: the file cannot state a floor for it"
        )
    seen.extend((report.cpuid, tcb) for tcb in (report.reported_tcb, report.committed_tcb, report.launch_tcb))
    return DONE


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!a}, expected a day as 2026-12-31") from None


if __name__ == "__main__":
    sys.exit(main())
