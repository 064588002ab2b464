# SPDX-License-Identifier: Apache-2.0
"""Times taken in turns, so that whatever else the machine does meets each alike, and what is said of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turns(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    number: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each work by its name, one for each round, divided by the ``number`` of things that it does.

    A round before the first warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            started = clock()
            work()
            if turn:
                seconds[name].append((clock() - started) / number)
    return seconds


def ratio_row(name: str, ours: list[float], bare: list[float], goal: float | None, digits: int) -> dict[str, Any]:
    """The ratio of two medians as a row of a benchmark; seconds are rounded to ``digits``. Without a goal it is met."""
    ratio = statistics.median(ours) / statistics.median(bare)
    return {
        "name": name,
        "ratio": round(ratio, 2),
        "goal": goal,
        "met": goal is None or ratio <= goal,
        "seconds": [round(value, digits) for value in ours],
        "bare_seconds": [round(value, digits) for value in bare],
    }
