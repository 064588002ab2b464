# SPDX-License-Identifier: Apache-2.0
"""The headers of a tar archive, POSIX pax: numeric owners without names, records only if a field does not fit.

Standard library only, and no other module: the appliance has this one file under its bare name.
"""

BLOCK = 512
# The first values that do not fit a field of 7 or 11 octal digits.
_ID = 1 << 21
_SIZE = 1 << 33


def record(key: bytes, value: bytes) -> bytes:
    """A pax record: its own decimal length, a space, key=value, a newline."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def sparse(name: bytes, size: int, ranges: "list[tuple[int, int]]") -> "tuple[bytes, bytes]":
    """Records and table of a file with holes, in GNU tar's format 1.0; the data of ``ranges`` follow the table.

    ``ranges`` are (offset, length) in bytes, and end with one of length 0 at ``size``.
    """
    table = b"%d\n" % len(ranges) + b"".join(b"%d\n%d\n" % one for one in ranges)
    records = (
        record(b"GNU.sparse.major", b"1")
        + record(b"GNU.sparse.minor", b"0")
        + record(b"GNU.sparse.name", name)
        + record(b"GNU.sparse.realsize", b"%d" % size)
    )
    return records, table + bytes(-len(table) % BLOCK)


def padding(size: int) -> bytes:
    """The zero bytes that fill the last block after ``size`` bytes."""
    return bytes(-size % BLOCK)


def member(
    name: bytes,
    kind: bytes,
    *,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes = b"",
    device: "tuple[int, int]" = (0, 0),
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """The header of a member. A pax header comes before it if a field does not fit or there are other records.

    ``kind`` is the type flag; ``size`` and ``mtime`` are in bytes and seconds since 1970, ``mtime`` below 2^33.
    ``before`` and ``after`` are records that come before and after those of the fields.
    """
    records = before
    long = [(key, text) for key, text in ((b"path", name), (b"linkpath", link)) if len(text) > 100]
    if any(not _is_utf8(text) for _, text in long):
        # Without it, readers take the text of records for UTF-8, and refuse other names (POSIX, pax).
        records += record(b"hdrcharset", b"BINARY")
    for key, text in long:
        records += record(key, text)
    for key, value, limit in ((b"size", size, _SIZE), (b"uid", uid, _ID), (b"gid", gid, _ID)):
        if value >= limit:
            records += record(key, b"%d" % value)
    records += after
    extended = b""
    if records:
        extended = _header(b"././@PaxHeader", b"x", 0o644, 0, 0, len(records), 0, b"", (0, 0))
        extended += records + padding(len(records))
    return extended + _header(name, kind, mode, uid, gid, size, mtime, link, device)


def _header(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    device: "tuple[int, int]",
) -> bytes:
    block = b"".join(
        (
            name[:100].ljust(100, b"\0"),
            _octal(mode, 8),
            _octal(uid if uid < _ID else 0, 8),
            _octal(gid if gid < _ID else 0, 8),
            _octal(size if size < _SIZE else 0, 12),
            _octal(mtime, 12),
            b" " * 8,
            kind,
            link[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),  # user and group names: numbers only
            _octal(device[0], 8),
            _octal(device[1], 8),
            bytes(167),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)
