# SPDX-License-Identifier: Apache-2.0
"""verify_report_emulated: appraise evidence of a software secure processor.

Exit 10 accepted as emulated, 2 refused, 3 undecided, 64 usage; never 0.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sevsnp.commands.arguments import guarded
from sevsnp.commands.verify_report import make_parser, read_evidence, read_expected, show
from sevsnp.emulation.verify import appraise_emulated
from sevsnp.vm_config.config import BANNER, read_vm_config

ACCEPTED_AS_EMULATED = 10


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line().parse_args(arguments)
    print(BANNER, file=sys.stderr)
    return guarded(lambda: _verify(options), json=options.json)


def command_line() -> argparse.ArgumentParser:
    """The options and what they mean."""
    parser = make_parser("verify_report_emulated", "Verify the report of a software secure processor.", True)
    parser.epilog = "exit: 10 accepted as emulated, 2 refused, 3 undecided, 64 wrong command line or own file"
    parser.add_argument("--root", metavar="FILE", type=Path, required=True, help="its ark.pem")
    return parser


def _verify(options: argparse.Namespace) -> int:
    config = read_vm_config(options.vm_config)
    appraisal = appraise_emulated(read_evidence(options), read_expected(options, config), options.at, options.root)
    return show(appraisal, options, config, f"accepted as emulated: {BANNER}", ACCEPTED_AS_EMULATED)


if __name__ == "__main__":
    sys.exit(main())
