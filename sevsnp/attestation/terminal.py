"""An appraisal in lines for people: the checks, what stays open, what to do, and the verdict last."""

import re
import sys

from sevsnp.attestation.explain import advice
from sevsnp.attestation.outcome import ENDED, REMEDY, Appraisal, Check, Outcome
from sevsnp.colour import Colour, paint

_MARKS: dict[Outcome, str] = {"passed": "✓", "failed": "✗", "not-compared": "–", "not-reached": "?"}


def print_appraisal(appraisal: Appraisal, headline: str) -> None:
    """Print it on standard output; ``headline`` is the verdict where the evidence was accepted."""
    amd = appraisal.trust_domain == "amd"
    good: Colour = "green" if amd else "amber"  # green is for hardware alone
    colours: dict[Outcome, Colour] = {"passed": good, "failed": "red", "not-reached": "cyan"}
    ended = [check for check in appraisal.checks if check.reason == ENDED]
    for check in appraisal.checks:
        if check not in ended:
            mark = f"{_MARKS[check.outcome]} {check.outcome:<12}"
            colour = colours.get(check.outcome)
            detail = f": {check.detail}" if check.detail else ""
            _line((paint(mark, colour, sys.stdout) if colour else mark), f" {check.name}{detail}")
    if ended:
        mark = f"{_MARKS['not-reached']} {'not-reached':<12}"
        _line(paint(mark, "cyan", sys.stdout), f" {len(ended)} more: {ENDED}")
    for remark in (*appraisal.notes, *appraisal.open_roads):
        _line(f"{'note':>14}", f" {remark}")
    if appraisal.accepted:
        verdict, colour = f"{headline} (policy: {appraisal.profile})", good
    else:
        _print_advice(appraisal)
        verdict = f"{appraisal.decision.upper()} ({appraisal.reason}): {appraisal.message}"
        colour = "red" if appraisal.decision == "refused" else "cyan"
    print(paint(_printable(verdict), colour, sys.stdout))


def _print_advice(appraisal: Appraisal) -> None:
    if appraisal.remedy:
        print(f"{REMEDY}: {appraisal.remedy}")
    elif first := _first(appraisal):
        print(f"what to do: {advice(first, appraisal.trust_domain)}")


def _first(appraisal: Appraisal) -> Check | None:
    """The check that the verdict names: that of its reason, or the first of its bits that failed."""
    wrong = [check for check in appraisal.checks if check.outcome == "failed" or check.missing]
    return next((check for check in wrong if check.name.partition(".")[0] == appraisal.reason), None)


def _line(mark: str, text: str) -> None:
    print(mark + _printable(text))


def _printable(text: str) -> str:
    """Without what could move the cursor: some of it comes from certificates."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
