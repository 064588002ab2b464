# SPDX-License-Identifier: Apache-2.0
"""Measure times in turns, so that other work of the machine affects all alike, and make result rows of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def in_turns(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    number: int = 1,
) -> dict[str, list[float]]:
    """The seconds of each work by name, one value for each round, divided by the ``number`` of items in one work.

    A warm-up round comes first and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            started = clock()
            work()
            if turn:
                seconds[name].append((clock() - started) / number)
    return seconds


def ratio_row(
    name: str,
    ours: Sequence[float],
    bare: Sequence[float],
    goal: float | None,
    digits: int,
    take: Callable[[Sequence[float]], float] = min,
) -> dict[str, Any]:
    """The ratio of two measured works as a row of a benchmark; seconds are rounded to ``digits``.

    ``take`` chooses the value of each work. Of times it is the least: what else the machine does can only add to it. No
    goal counts as met.
    """
    ratio = take(ours) / take(bare)
    return {
        "name": name,
        "ratio": round(ratio, 2),
        "goal": goal,
        "met": goal is None or ratio <= goal,
        "seconds": [round(value, digits) for value in ours],
        "bare_seconds": [round(value, digits) for value in bare],
    }
