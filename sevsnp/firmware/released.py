# SPDX-License-Identifier: Apache-2.0
"""The firmware of a build/snp-release that was not made from packages.lock: ours made from its firmware, or none.

A firmware that needs no change is taken as it is, if the gate accepts it. There is no reason that replaces the gate.
"""

import hashlib
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.firmware.gate import problem
from sevsnp.firmware.known import STOCK
from sevsnp.firmware.make import make_firmware


def take_firmware(*, stock: Path, python: Path, output: Path) -> None:
    """Write the measured guests' firmware to ``output``; ``stock`` is the tree's, ``python`` the Python of the tree.

    Raises :class:`UserError` naming a firmware that is neither the pinned one nor accepted by the gate.
    """
    image = stock.read_bytes()
    digest = hashlib.sha256(image).hexdigest()
    if digest == STOCK:
        make_firmware(stock=stock, python=python, output=output)
        return
    if found := problem(digest, stock):
        raise UserError(
            f"{stock}: firmware refused: {found} (SHA-256 {digest})",
            "take build/snp-release from packages.lock: ./doitw packages PACKAGES_SOURCE=debian",
        )
    output.write_bytes(image)
