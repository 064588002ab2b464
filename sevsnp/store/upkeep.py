# SPDX-License-Identifier: Apache-2.0
"""Commands on the artefact cache itself: status, prune, verify."""

from sevsnp.errors import UserError
from sevsnp.store.cache import require_cache
from sevsnp.store.session import options


def status() -> None:
    """Print the cache's directory, content and limit, and the registry that it is shared through."""
    held, chosen = require_cache().local.usage(), options()
    print(f"directory  {chosen.directory}")
    print(f"holds      {held.entries} entries, {held.blobs} blobs, {_mib(held.size)} of {_mib(chosen.limit)}")
    if chosen.shared:
        print(f"shared     {chosen.shared} ({'read and write' if chosen.push else 'read only'})")
    else:
        print("shared     no (CACHE=oci://host/repository)")


def prune() -> None:
    """Keep to CACHE_SIZE. Raises UserError while another run uses the cache."""
    removed = require_cache().local.prune(options().limit)
    if removed is None:
        raise UserError("the artefact cache is in use by another run", "try again when it has ended")
    held = require_cache().local.usage()
    print(f"removed {removed.entries} entries, {removed.blobs} blobs, {_mib(removed.size)}")
    print(f"kept    {held.entries} entries, {held.blobs} blobs, {_mib(held.size)} of {_mib(options().limit)}")


def verify() -> None:
    """Hash every blob again. Raises UserError naming the damaged blobs, which were removed."""
    local = require_cache().local
    with local.in_use():
        damaged = local.verify()
    if damaged:
        raise UserError("\n".join(damaged), "build again: that makes what was damaged")
    held = local.usage()
    print(f"{held.entries} entries and {held.blobs} blobs ({_mib(held.size)}) are as they were made")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
