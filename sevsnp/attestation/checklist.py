# SPDX-License-Identifier: Apache-2.0
"""The running list of checks of one appraisal. A failure ends it only if later checks would be meaningless."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeVar

from sevsnp.attestation.chain import ChainError, TrustDomain
from sevsnp.attestation.extensions import ExtensionError
from sevsnp.attestation.outcome import ENDED, Check, Checks, Decision, Reason
from sevsnp.attestation.rules import Anything, Compared, Rule, Shown, Unstated, comparison, show_rule
from sevsnp.errors import UserError

T = TypeVar("T")


_REASONS = tuple(Reason)  # iterating over the class itself is slow
_NAMES = frozenset(map(str, _REASONS))


class Unreachable(Exception):
    """Certificates or revocation lists could not be obtained; this says nothing about the evidence."""


class Stop(Exception):
    """Further checks would be meaningless; the checklist has the reason."""


class Planned(NamedTuple):
    """A rule of a policy, made ready for many reports: the name of its check, its text and its comparison.

    ``value`` takes the compared value from what :meth:`Checklist.compare` is given. ``bit`` is the name of a single
    bit's check; else it is empty, and the check has the reason's name. ``uncompared`` says why the value is not
    compared; it is empty if it is.
    """

    reason: Reason
    value: Callable[[Any], Compared]
    expected: str
    holds: Callable[[Compared], bool]
    uncompared: str
    bit: str

    @classmethod
    def of(cls, reason: Reason, rule: Rule, value: Callable[[Any], Compared], bit: str = "") -> "Planned":
        why = rule.reason if isinstance(rule, Anything) else ""
        if isinstance(rule, Unstated):
            why = f"no minimum is stated: see {Reason.TCB_FLOOR}"
        return cls(reason, value, show_rule(rule), comparison(rule), why, bit)

    def check(self, found: Any) -> Check:
        """The check of a value that satisfies the rule, or is not compared."""
        name, value = self.bit or self.reason, self.value(found)
        if self.uncompared:
            return Check(name, "not-compared", "anything", value, self.uncompared)
        return Check(name, "passed", self.expected, value)


@dataclass(frozen=True, eq=False)
class Plan:
    """All rules of a policy, made ready. It says itself which of them compare anything."""

    rules: tuple[Planned, ...]
    compared: tuple[Planned, ...]
    reasons: frozenset[Reason]

    @classmethod
    def of(cls, rules: tuple[Planned, ...]) -> "Plan":
        compared = tuple(one for one in rules if not one.uncompared)
        return cls(rules, compared, frozenset(one.reason for one in rules if not one.bit))


_NOTHING = Plan.of(())


class Checklist:
    """The outcomes so far, under one trust domain."""

    def __init__(self, domain: TrustDomain) -> None:
        self.domain = domain
        self._checks: dict[str, Check] = {}
        self._plan: Plan = _NOTHING
        self._found: Any = None
        self._failed: tuple[Reason, str] | None = None
        self._pending: tuple[Reason, str] | None = None

    def passed(self, reason: Reason, found: Shown = "", expected: Shown = "") -> None:
        self._checks[reason] = Check(reason, "passed", expected or found, found)

    def not_compared(self, reason: Reason | str, why: str, found: Shown = "") -> None:
        self._checks[reason] = Check(reason, "not-compared", "anything", found, why)

    def failed(self, reason: Reason, message: str, *, expected: Shown = "", found: Shown = "", name: str = "") -> None:
        check = self._checks[name or reason] = Check(name or reason, "failed", expected, found, message)
        shown = f"found {check.found}, expected {check.expected}" if check.expected or check.found else ""
        shown = f"{name}: {shown}" if name and shown else shown
        self._failed = self._failed or (reason, "; ".join(filter(None, (shown, message))))

    def pending(self, reason: Reason, message: str) -> None:
        """Record a check that cannot be decided now; it decides the outcome only if no check fails."""
        self._checks[reason] = Check(reason, "not-reached", reason=message)
        self._pending = self._pending or (reason, message)

    def stop(self, reason: Reason, message: str) -> NoReturn:
        """Refuse at once."""
        self.failed(reason, message)
        raise Stop

    def give_up(self, reason: Reason, message: str) -> NoReturn:
        """End the appraisal at once as undecided."""
        self.pending(reason, message)
        raise Stop

    def stop_on_failure(self) -> None:
        if self._failed:
            raise Stop

    def require(self, reason: Reason, holds: bool, *, expected: Shown, found: Shown, message: str = "") -> None:
        if holds:
            self.passed(reason, found, expected)
        else:
            self.failed(reason, message, expected=expected, found=found)

    def compare(self, plan: Plan, found: Any) -> None:
        """Compare the values in ``found`` with a policy's rules.

        Each comparison is made now. The check of one that does not fail is made when somebody reads it.
        """
        self._plan, self._found = plan, found
        for rule in plan.compared:
            value = rule.value(found)
            if not rule.holds(value):
                self.failed(rule.reason, "", expected=rule.expected, found=value, name=rule.bit)

    def attempt(self, reason: Reason, step: Callable[[], T]) -> T:
        """Run a step that reads or verifies evidence; its error refuses the evidence."""
        try:
            return step()
        except UserError as error:
            self.stop(reason, error.message)
        except ExtensionError as error:
            self.stop(reason, str(error))
        except ChainError as error:
            self.stop(Reason(error.reason), str(error))

    def decide(self) -> tuple[Decision, Reason | None, str]:
        """The decision; it is "accepted" only if every check was made and none failed."""
        if self._failed:
            return "refused", *self._failed
        if self._pending:
            return "undecided", *self._pending
        for reason in _REASONS:
            if reason not in self._checks and reason not in self._plan.reasons:
                self.failed(reason, f"{reason}: never checked")
                return "refused", reason, f"{reason}: never checked"
        return "accepted", None, ""

    def checks(self) -> Checks:
        """Every check in the order of Reason; the checks of single bits come last."""
        return Checks(self._every)

    def _every(self) -> tuple[Check, ...]:
        named = ((rule.bit or rule.reason, rule) for rule in self._plan.rules)
        known = {name: self._checks.get(name) or rule.check(self._found) for name, rule in named} | self._checks
        made = [known.get(reason) or Check(reason, "not-reached", reason=ENDED) for reason in _REASONS]
        return (*made, *(check for name, check in known.items() if name not in _NAMES))
