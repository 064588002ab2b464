# SPDX-License-Identifier: Apache-2.0
"""The signature algorithm of a certificate or revocation list, which is there twice: signed, and beside the signature.

RFC 5280 (4.1.1.2, 5.1.1.2) demands that both are the same, with their parameters. The one beside the signature is not
signed, so a library that reads only that one reports parameters which the issuer never said.
"""

from sevsnp.errors import UserError

_SEQUENCE = 0x30


def algorithm_problem(whole: bytes, signed: bytes) -> str:
    """What is wrong with the two algorithms; empty if they are the same bytes.

    ``whole`` is the certificate or list in DER, ``signed`` its signed part (TBSCertificate or TBSCertList), with which
    the content of ``whole`` begins.
    """
    try:
        content = _element(whole, 0, _SEQUENCE)
        if content[: len(signed)] != signed:
            return "its signed part is not where it belongs"
        outer = _whole_element(content, len(signed))
        inner = _first_sequence(_element(signed, 0, _SEQUENCE))
    except (UserError, IndexError):
        return "its signature algorithm cannot be read"
    return "" if inner == outer else "the algorithm beside its signature is not the signed one"


def _first_sequence(content: bytes) -> bytes:
    """The first SEQUENCE in a TBSCertificate (after version and serial number) or TBSCertList (after the version)."""
    position = 0
    for _ in range(3):
        found = _whole_element(content, position)
        if found[0] == _SEQUENCE:
            return found
        position += len(found)
    raise UserError("no algorithm")


def _whole_element(data: bytes, position: int) -> bytes:
    """A DER element with its tag and length (X.690 8.1)."""
    start, size = _length(data, position)
    if start + size > len(data):
        raise UserError("found an element that ends outside of the certificate")
    return data[position : start + size]


def _element(data: bytes, position: int, tag: int) -> bytes:
    start, size = _length(data, position)
    if data[position] != tag or start + size > len(data):
        raise UserError("found another element")
    return data[start : start + size]


def _length(data: bytes, position: int) -> tuple[int, int]:
    """Where the content of an element with a tag of one octet starts, and its size."""
    first = data[position + 1]
    if first < 0x80:
        return position + 2, first
    octets = first & 0x7F
    if not 1 <= octets <= 4 or position + 2 + octets > len(data):
        raise UserError("found a length that is not valid")
    return position + 2 + octets, int.from_bytes(data[position + 2 : position + 2 + octets], "big")
