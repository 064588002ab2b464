# SPDX-License-Identifier: Apache-2.0
"""Print an appraisal on the terminal: the checks, the residual risks, what to do, and last the verdict."""

import io
import sys

from sevsnp.attestation.explain import advice
from sevsnp.attestation.outcome import ENDED, REMEDY, Appraisal, Outcome
from sevsnp.system.colour import Colour, paint
from sevsnp.system.text import printable

_MARKS: dict[Outcome, str] = {"passed": "✓", "failed": "✗", "not-compared": "–", "not-reached": "?"}


def print_appraisal(appraisal: Appraisal, headline: str) -> None:
    """Print ``appraisal`` on standard output; ``headline`` is the verdict to print if the evidence was accepted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without these marks must not prevent the verdict
    good: Colour = "green" if appraisal.trust_domain == "amd" else "amber"  # green is for hardware only
    colours: dict[Outcome, Colour] = {"passed": good, "failed": "red", "not-reached": "cyan"}
    troubles = appraisal.troubles()
    ended = sum(check.reason == ENDED for check in appraisal.checks)

    def line(outcome: Outcome, text: str) -> None:
        mark, colour = f"{_MARKS[outcome]} {outcome:<12}", colours.get(outcome)
        print(paint(mark, colour, sys.stdout) if colour else mark, printable(text))

    for check in [one for one in appraisal.checks if one.ok] + troubles[::-1]:
        line(check.outcome, f"{check.name}{': ' if check.detail else ''}{check.detail}")
    if ended:
        line("not-reached", f"{ended} more: {ENDED}")
    for remark in (*appraisal.notes, *appraisal.residual_risks):
        print("! open        ", printable(remark))
    if appraisal.accepted:
        verdict, colour = f"{headline} (policy: {appraisal.profile})", good
    else:
        if appraisal.remedy:
            print(printable(f"{REMEDY}: {appraisal.remedy}"))
        elif troubles:
            print(printable(f"what to do: {advice(troubles[0], appraisal.trust_domain)}"))
        verdict = f"{appraisal.decision.upper()} ({appraisal.reason}): {appraisal.message}"
        colour = "red" if appraisal.decision == "refused" else "cyan"
    print(paint(printable(verdict), colour, sys.stdout))
