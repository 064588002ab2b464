# SPDX-License-Identifier: Apache-2.0
"""Read PEM (RFC 7468) in linear time. The bytes come from a host or a service, so no byte may be read again and again.

This module decodes only the blocks that a caller asks for. So a private key in a file is never decoded.
"""

import base64
import binascii
from typing import NamedTuple

CERTIFICATE, CRL = "CERTIFICATE", "X509 CRL"

_BEGIN, _END, _DASHES = b"-----BEGIN ", b"-----END ", b"-----"
_LONGEST_LABEL = 64


class Block(NamedTuple):
    """One block: its label, for example CERTIFICATE, and its text in base64."""

    label: str
    text: bytes

    @property
    def private(self) -> bool:
        """Whether the block is a private key of any kind."""
        return self.label.endswith("PRIVATE KEY")

    def decode(self) -> bytes:
        """The block's bytes, usually DER. Raises ValueError if the text is not base64."""
        try:
            return base64.b64decode(b"".join(self.text.split()), validate=True)
        except binascii.Error as error:
            raise ValueError(f"PEM: {self.label}: not base64") from error


def is_pem(data: bytes) -> bool:
    """Whether ``data`` has the beginning of a PEM block."""
    return _BEGIN in data


def read_blocks(data: bytes, most: int) -> list[Block]:
    """All blocks of ``data`` in their order. Raises ValueError for more than ``most`` blocks, or an incomplete one.

    Each search begins where the search before it ended, and a BEGIN line without an END line ends the work. So the
    time is proportional to the length of ``data``, whatever is in it.
    """
    found: list[Block] = []
    place = 0
    while (start := data.find(_BEGIN, place)) >= 0:
        if len(found) == most:
            raise ValueError(f"more than {most} PEM blocks")
        start += len(_BEGIN)
        body = data.find(_DASHES, start, start + _LONGEST_LABEL + len(_DASHES))
        stop = data.find(_END, body) if body >= 0 else -1
        label = data[start:body]
        last = _END + label + _DASHES
        text = data[body + len(_DASHES) : stop]
        if stop < 0 or not data.startswith(last, stop) or _BEGIN in text:
            raise ValueError("PEM: a BEGIN line without its END line")
        found.append(Block(label.decode("ascii", "replace"), text))
        place = stop + len(last)
    return found
