# SPDX-License-Identifier: Apache-2.0
"""A file of minimum TCB versions that the owner keeps: dated, signed, and with an end.

The file is one JSON document, and FILE.sig is its detached signature (sevsnp.keys.signature). Its first line names its
type, so that the signature is not valid for another file. We ship the format and no numbers: they come from AMD's
bulletins, or from reports that the owner has seen.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sevsnp.errors import UserError
from sevsnp.system.files import each_key_once
from sevsnp.vm_config.config import Tcb
from sevsnp.vm_config.floors import Floor, Processor, floor_for, parse_floors
from sevsnp.vm_config.processor import Cpuid

if TYPE_CHECKING:
    from sevsnp.keys.signature import VerifyingKey

TYPE = "openend2e-sevsnp tcb floors 1"
_OPENING = f'{{\n  "type": "{TYPE}",\n'.encode()
_MAX_SIZE = 1 << 20
_KEYS = {"type", "version", "issued", "expires", "floors"}


class FloorsFile(NamedTuple):
    """The contents: a number that rises with each edition, the days of its issue and of its end, and the floors."""

    version: int
    issued: date
    expires: date
    floors: tuple[Floor, ...]

    @property
    def end(self) -> datetime:
        """The last moment at which it holds: the end of its last day, in UTC."""
        return datetime.combine(self.expires, time.max, UTC)


def read_floors(path: Path, public_key: Path) -> FloorsFile:
    """Read the file ``path`` that ``public_key`` signed. Raises :class:`UserError`; expiry is the appraisal's."""
    from sevsnp.keys.signature import load_public_key

    return read_signed(path, load_public_key(public_key), public_key)


def read_signed(path: Path, key: "VerifyingKey", name: Path, hint: str = "") -> FloorsFile:
    """Like :func:`read_floors`, with a public key that was read; ``name`` and ``hint`` are for the error."""
    from sevsnp.keys.signature import is_signed

    data, signature = (_read(one) for one in (path, path.with_name(f"{path.name}.sig")))
    if not is_signed(key, signature, data):
        raise UserError(f"{path}: its signature is not that of {name}", hint)
    return parse_file(data, path)


def parse_file(data: bytes, path: Path) -> FloorsFile:
    """Read the document, which must have every key and no other. Raises :class:`UserError`."""
    if not data.startswith(_OPENING):
        raise UserError(f"{path}: not a file of minimum TCB versions: expected its type: {TYPE}")
    try:
        document = json.loads(data, object_pairs_hook=each_key_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a file of minimum TCB versions: {error!s:.300}") from None
    try:
        if set(document) != _KEYS or type(document["version"]) is not int or document["version"] < 1:
            raise ValueError(f"the keys {', '.join(sorted(_KEYS))}, and a version of 1 or more")
        issued, expires = (date.fromisoformat(document[name]) for name in ("issued", "expires"))
        if issued > expires:
            raise ValueError("an end after its issue")
        return FloorsFile(document["version"], issued, expires, parse_floors(document["floors"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a file of minimum TCB versions: expected {error!s:.300}") from None


def render_file(found: FloorsFile) -> bytes:
    """The text of a file; equal contents give equal text."""
    floors = sorted(found.floors, key=lambda floor: str(floor.processor))
    document = {
        "type": TYPE,
        "version": found.version,
        "issued": found.issued.isoformat(),
        "expires": found.expires.isoformat(),
        "floors": [
            {
                "cpuid": str(floor.processor),
                **{name: part for name, part in vars(floor.tcb).items() if part is not None},
            }
            for floor in floors
        ],
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def lowest(seen: Iterable[tuple[Cpuid, Tcb]], before: tuple[Floor, ...] = ()) -> tuple[Floor, ...]:
    """For each processor the highest floor that everything seen of it meets, and never below its floor ``before``."""
    by_cpuid: dict[Cpuid, Tcb] = {}
    for cpuid, tcb in seen:
        by_cpuid[cpuid] = _combined(by_cpuid[cpuid], tcb, min) if cpuid in by_cpuid else tcb
    made = {floor.processor: floor.tcb for floor in before}
    for cpuid, tcb in by_cpuid.items():
        old = floor_for(before, cpuid)
        made[Processor(*cpuid)] = _combined(old, tcb, max) if old else tcb
    return tuple(Floor(processor, tcb) for processor, tcb in made.items())


def _combined(one: Tcb, other: Tcb, choose: Any) -> Tcb:
    parts: Mapping[str, int | None] = vars(other)
    return Tcb(**{name: choose(vars(one)[name], part) for name, part in parts.items() if part is not None})


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_SIZE + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > _MAX_SIZE:
        raise UserError(f"{path}: more than {_MAX_SIZE} bytes")
    return data
