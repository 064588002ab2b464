# SPDX-License-Identifier: Apache-2.0
"""The recorded hosts in tests/data/hosts, and such hosts with one fact changed."""

from dataclasses import replace
from pathlib import Path

from sevsnp.host_setup.judge import Verdict
from sevsnp.host_setup.recorded import Host, read_host

HOSTS = Path(__file__).resolve().parents[1] / "data" / "hosts"
GOOD = tuple(sorted(path.name for path in HOSTS.glob("good-*")))


def host(name: str) -> Host:
    return read_host(HOSTS / name)


def with_text(base: Host, part: str, text: str) -> Host:
    """``base`` with another content of a part."""
    return replace(base, texts={**base.texts, part: text})


def edited(base: Host, part: str, old: str, new: str) -> Host:
    """``base`` with ``new`` in place of ``old``, which must be there."""
    text = base.texts[part]
    assert old in text, f"{part}: {old!r} is not in {text!r}"
    return with_text(base, part, text.replace(old, new))


def without(base: Host, *parts: str, absent: bool = False) -> Host:
    """``base`` without parts: unknown ones, or ones that the host lacks."""
    texts = {part: text for part, text in base.texts.items() if part not in parts}
    return replace(base, texts=texts, absent=base.absent | set(parts) if absent else base.absent)


def not_ok(verdict: Verdict, *statuses: str) -> set[str]:
    """The names of the findings with one of ``statuses``, by default failed or unknown."""
    return {finding.name for finding in verdict.findings if finding.status in (statuses or ("failed", "unknown"))}
