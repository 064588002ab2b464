"""The artefact cache: what it holds, keeping it small, and reading all of it again."""

from tasks.graph import UNLISTED, Task, command


def task_cache_status() -> Task:
    """Say where the artefact cache is; see also cache_prune and cache_verify"""
    return command("sevsnp.store.upkeep:status")


def task_cache_prune() -> Task:
    """Remove what was not used for longest from the artefact cache [CACHE_SIZE]"""
    return {**command("sevsnp.store.upkeep:prune"), "meta": UNLISTED}


def task_cache_verify() -> Task:
    """Read all of the artefact cache again and remove what is damaged"""
    return {**command("sevsnp.store.upkeep:verify"), "meta": UNLISTED}
