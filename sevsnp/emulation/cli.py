"""verify_report_emulated: appraise evidence of a software secure processor.

Exit 10 accepted as emulated, 2 refused, 3 unusable input; never 0.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sevsnp.attestation.appraisal import Refused
from sevsnp.attestation.cli import make_parser, read_evidence, read_expected, show, show_refusal, show_unusable
from sevsnp.emulation.verify import verify_emulated
from sevsnp.errors import UserError
from sevsnp.vm.platforms import BANNER

ACCEPTED_AS_EMULATED = 10


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser("verify_report_emulated", "Verify the report of a software secure processor.")
    parser.add_argument("--root", metavar="FILE", type=Path, required=True, help="its ark.pem")
    options = parser.parse_args(arguments)
    print(BANNER, file=sys.stderr)
    try:
        verdict = verify_emulated(read_evidence(options), read_expected(options), datetime.now(UTC), options.root)
    except Refused as refused:
        return show_refusal(refused, options.json)
    except UserError as error:
        return show_unusable(error)
    show(verdict.to_json(), verdict.checks, options.json, f"accepted as emulated: {BANNER}")
    return ACCEPTED_AS_EMULATED


if __name__ == "__main__":
    sys.exit(main())
