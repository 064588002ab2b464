# SPDX-License-Identifier: Apache-2.0
"""The artefact cache: print its state, reduce it to its limit, and check all of it."""

from tasks.graph import Task, command

# sevsnp.store.session reads these, for every task.
SETTINGS = ("SEVSNP_CACHE", "CACHE", "CACHE_SIZE")


def task_cache_status() -> Task:
    """Say where the artefact cache is; see also cache_prune and cache_verify

    Prints the directory of the artefact cache, how much it holds, and the registry that it is shared through.

    Next: ./doitw cache_prune, or ./doitw cache_verify
    """
    return {**command("sevsnp.store.upkeep:status"), "meta": {"settings": SETTINGS}}


def task_cache_prune() -> Task:
    """Remove what was not used for longest from the artefact cache [CACHE_SIZE]

    Removes entries, those that were not used for longest first, until CACHE_SIZE is kept to. A build does the same by
    itself.

    Next: ./doitw cache_status
    """
    return {**command("sevsnp.store.upkeep:prune"), "meta": {"settings": SETTINGS}}


def task_cache_verify() -> Task:
    """Read all of the artefact cache again and remove what is damaged

    Hashes every file in the artefact cache again. What is damaged is removed and named; it is made again when it is
    needed.

    Next: ./doitw cache_status
    """
    return {**command("sevsnp.store.upkeep:verify"), "meta": {"settings": SETTINGS}}
