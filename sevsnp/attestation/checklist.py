# SPDX-License-Identifier: Apache-2.0
"""The running list of checks of one appraisal. A failure ends it only if later checks would be meaningless."""

from collections.abc import Callable
from typing import NoReturn, TypeVar

from sevsnp.attestation.chain import ChainError, TrustDomain
from sevsnp.attestation.extensions import ExtensionError
from sevsnp.attestation.outcome import ENDED, Check, Decision, Reason
from sevsnp.attestation.rules import Anything, ChipTcb, Rule, Unstated, Value, holds, show
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Tcb

T = TypeVar("T")


_REASONS = tuple(Reason)  # iterating over the class itself is slow
_NAMES = frozenset(str(reason) for reason in _REASONS)


class Unreachable(Exception):
    """Certificates or revocation lists could not be obtained; this says nothing about the evidence."""


class Stop(Exception):
    """Further checks would be meaningless; the checklist has the reason."""


class Checklist:
    """The outcomes so far, under one trust domain."""

    def __init__(self, domain: TrustDomain) -> None:
        self.domain = domain
        self._checks: dict[str, Check] = {}
        self._failed: tuple[Reason, str] | None = None
        self._pending: tuple[Reason, str] | None = None

    def passed(self, reason: Reason, found: str = "", expected: str = "") -> None:
        self._checks[reason] = Check(reason, "passed", expected or found, found)

    def not_compared(self, reason: Reason | str, why: str, found: str = "") -> None:
        self._checks[reason] = Check(reason, "not-compared", "anything", found, why)

    def failed(self, reason: Reason, message: str, *, expected: str = "", found: str = "", name: str = "") -> None:
        self._checks[name or reason] = Check(name or reason, "failed", expected, found, message)
        shown = f"{f'{name}: ' if name else ''}found {found}, expected {expected}" if expected or found else ""
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

    def require(self, reason: Reason, holds: bool, *, expected: str, found: str, message: str = "") -> None:
        if holds:
            self.passed(reason, found, expected)
        else:
            self.failed(reason, message, expected=expected, found=found)

    def rule(
        self, reason: Reason, rule: Rule, expected: str, value: Value | Tcb | ChipTcb | None, name: str = ""
    ) -> None:
        """Compare a value with the policy's rule for it; ``expected`` is the text of the rule."""
        found = show(value)
        if isinstance(rule, Anything):
            self.not_compared(name or reason, rule.reason, found)
        elif isinstance(rule, Unstated):
            self.not_compared(name or reason, f"no minimum is stated: see {Reason.TCB_FLOOR}", found)
        elif holds(rule, value):
            self._checks[name or reason] = Check(name or reason, "passed", expected, found)
        else:
            self.failed(reason, "", expected=expected, found=found, name=name)

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
            if reason not in self._checks:
                self.failed(reason, f"{reason}: never checked")
                return "refused", reason, f"{reason}: never checked"
        return "accepted", None, ""

    def checks(self) -> tuple[Check, ...]:
        """Every check in the order of Reason; the checks of single bits come last."""
        made = [self._checks.get(reason) or Check(reason, "not-reached", reason=ENDED) for reason in _REASONS]
        return (*made, *(check for name, check in self._checks.items() if name not in _NAMES))
