# SPDX-License-Identifier: Apache-2.0
"""Colours for important words and marks, if the terminal has colours and the user wants them."""

import os
from typing import Literal, TextIO

from sevsnp.system.live import can_draw

Colour = Literal["green", "red", "amber", "cyan"]
_CODES: dict[Colour, int] = {"green": 32, "red": 31, "amber": 33, "cyan": 36}


def has_colours(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal with colours, and NO_COLOR (no-color.org) is unset or empty."""
    return can_draw(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, colour: Colour, stream: TextIO) -> str:
    """``text`` in ``colour`` if ``stream`` has colours, otherwise unchanged."""
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if has_colours(stream) else text
