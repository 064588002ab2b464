# SPDX-License-Identifier: Apache-2.0
"""inspect_report: print a report bit by bit, and whether AMD hardware made it. Exit 0, 2, 3 or 64."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sevsnp.commands.arguments import Parser, guarded
from sevsnp.commands.verify_report import add_input, add_sources, endorser, read_evidence
from sevsnp.system.text import printable
from sevsnp.vm_config.config import BANNER

if TYPE_CHECKING:
    from sevsnp.attestation.inspection import Inspection


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line().parse_args(arguments)

    def work() -> int:
        from sevsnp.attestation.verifier import amd_service, inspect_report

        sources = endorser(options, amd_service)
        found = inspect_report(read_evidence(options), options.at, endorser=sources, product=options.product)
        if options.json:
            print(json.dumps(found.to_json(), indent=2))
        else:
            for line in _lines(found):
                print(printable(line))
        return {True: 0, False: 2, None: 3}[found.authentic]

    return guarded(work, json=options.json)


def command_line() -> argparse.ArgumentParser:
    """The options and what they mean."""
    parser = Parser(
        prog="inspect_report",
        description="Show what an SNP attestation report says, and whether it is authentic; not whether to accept it.",
        epilog="exit: 0 authentic, 2 not authentic, 3 undecided, 64 wrong command line or own file",
    )
    add_input(parser)
    add_sources(parser)
    parser.add_argument(
        "--product", choices=("Milan", "Genoa", "Turin"), help="where neither report nor certificate says it"
    )
    return parser


def _lines(found: "Inspection") -> Iterator[str]:
    """The result in words. Field names, values, notes and the reason may have text from the evidence."""
    yield from _of_fields(found.fields)
    yield from (f"! {note}" for note in found.notes)
    if found.emulated:
        yield BANNER
    word = {True: "AUTHENTIC", False: "NOT AUTHENTIC", None: "UNDECIDED"}[found.authentic]
    yield f"{word}: {found.reason or f'signed by the {found.signer} of a genuine {found.product}'}"


def _of_fields(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, dict) and all(not isinstance(one, bool | str | dict | None) for one in value.values()):
            yield f"{indent}{name}: {', '.join(f'{part} {one}' for part, one in value.items())}"
        elif isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _of_fields(value, indent + "  ")
        else:
            shown = {True: "1", False: "0", None: "not in this version"}.get(value, value) if _special(value) else value
            yield f"{indent}{name}: {shown}"


def _special(value: Any) -> bool:
    return value is None or isinstance(value, bool)


if __name__ == "__main__":
    sys.exit(main())
