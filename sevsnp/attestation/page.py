# SPDX-License-Identifier: Apache-2.0
"""The HTML page of an attestation: the verdict, what failed and what to do about it, and every check in its group."""

from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any, Literal

from sevsnp.attestation.explain import GROUPS, advice
from sevsnp.attestation.inspection import describe
from sevsnp.attestation.outcome import ENDED, REMEDY, Appraisal, Check, Reason
from sevsnp.system.files import write_atomic
from sevsnp.system.template import find_template, html_template
from sevsnp.vm_config.config import BANNER, VmConfig

State = Literal["accepted", "emulated", "refused", "undecided"]
_WORDS: dict[State, tuple[str, str]] = {
    "accepted": ("Accepted", "AMD hardware runs the guest of the VM config."),
    "emulated": (
        "Accepted as emulated",
        "A software secure processor runs the guest of the VM config. It keeps nothing secret from its host.",
    ),
    "refused": ("Refused", "Do not trust this guest with anything."),
    "undecided": (
        "Undecided",
        "The verifier could not get AMD's certificates for this chip. The evidence is not accepted.",
    ),
}
_COUNTED = {
    "passed": ("✓", "passed"),
    "failed": ("✗", "failed"),
    "not-compared": ("–", "not compared"),
    "not-reached": ("?", "not reached"),
}


def write_page(path: Path, appraisal: Appraisal, config: VmConfig | None) -> None:
    """Write the page of an attestation to ``path`` (mode 0644), whole or not at all. Raises OSError.

    ``appraisal`` comes from the verdict, or from the exception if the evidence was refused or is undecided. It has
    every check, the report and the time, so this function verifies nothing again. ``config`` is the VM config that
    the evidence was compared with, or None if a policy alone stated the guest. In both trust domains::

        try:
            verdict = verify_report(evidence, Expected.of(config, report_data), now)  # or verify_emulated(…)
        except Refused as refused:  # Undecided is one, too
            write_page(path, refused.appraisal, config)
            raise
        write_page(path, verdict.appraisal, config)
    """
    write_atomic(path, render_page(appraisal, config))


def render_page(appraisal: Appraisal, config: VmConfig | None) -> str:
    """The page as self-contained text: it has no script and no link, and loads nothing."""
    state = _state(appraisal)
    title, sentence = _WORDS[state]
    checks = appraisal.checks
    return html_template(find_template("verdict.html.j2")).render(
        state=state,
        title=title,
        sentence=sentence,
        banner=BANNER,
        appraisal=appraisal,
        config=config,
        at=appraisal.at.astimezone(UTC),
        authentic=_passed(checks, Reason.UNKNOWN_ROOT) and _passed(checks, Reason.SIGNATURE),
        counts=_counts(checks),
        troubles=[_trouble(check, appraisal) for check in appraisal.troubles()],
        groups=_groups(checks),
        ended=[check.name for check in checks if check.reason == ENDED],
        marks={outcome: mark for outcome, (mark, _) in _COUNTED.items()},
        fields=describe(appraisal.report) if appraisal.report else {},
    )


def _state(appraisal: Appraisal) -> State:
    if appraisal.decision == "accepted":
        return "accepted" if appraisal.trust_domain == "amd" else "emulated"
    return appraisal.decision


def _passed(checks: Sequence[Check], reason: Reason) -> bool:
    return any(check.name == reason and check.outcome == "passed" for check in checks)


def _counts(checks: Sequence[Check]) -> list[tuple[str, str, str]]:
    """For each outcome that a check has: the outcome, its mark, and its count in words ("41 passed")."""
    numbers = {outcome: sum(check.outcome == outcome for check in checks) for outcome in _COUNTED}
    return [
        (outcome, mark, f"{numbers[outcome]} {words}")
        for outcome, (mark, words) in _COUNTED.items()
        if numbers[outcome]
    ]


def _trouble(check: Check, appraisal: Appraisal) -> dict[str, Any]:
    """A check that prevents acceptance, and what to do; it has a ``command`` only if a command repairs the problem."""
    command = appraisal.remedy if check.name == appraisal.reason else ""
    todo = f"{REMEDY[0].upper()}{REMEDY[1:]}:" if command else advice(check, appraisal.trust_domain)
    return {"check": check, "advice": todo, "command": command}


def _groups(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Each group in which at least one check was reached, with its checks and their counts."""
    found = []
    for group in GROUPS:
        those = tuple(one for one in checks if one.outcome != "not-reached" and one.reason_name in group.reasons)
        if those:
            found.append({"title": group.title, "about": group.about, "checks": those, "counts": _counts(those)})
    return found
