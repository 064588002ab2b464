"""The ID block of a workflow's guests: signed for the secure processor, which then starts nothing else with it."""

from collections.abc import Iterator
from pathlib import Path

from tasks import luks, verity
from tasks.graph import UNLISTED, Task, command
from tasks.project import E2E, signing_key


def task_idblock() -> Iterator[Task]:
    """Sign ID blocks for the VM configs: idblock:verity, idblock:luks [ID_KEY …]"""
    # The list of tasks has as many lines as a screen; what few need is found in docs/id-block.md.
    yield {"name": None, "doc": task_idblock.__doc__, "meta": UNLISTED}
    for workflow, config in (("verity", verity.config), ("luks", luks.config)):
        yield {
            "name": workflow,
            "doc": f"Sign an ID block for the VM configs of setup_{workflow}",
            **_signed([config("snp"), config("emulated")]),
        }


def task__e2e_idblock() -> Task:
    """The same for end to end's encrypted guest."""
    return _signed([luks.config("snp", E2E), luks.config("emulated", E2E)])


def _signed(configs: list[Path]) -> Task:
    id_key, author_key = (signing_key(name) for name in ("ID_KEY", "AUTHOR_KEY"))
    output = configs[0].parent / "idblock"
    made = [path.name for path in configs]
    made += [f"{kind}-block{suffix}.base64" for kind in ("id", "auth") for suffix in ("", ".emulated")]
    return {
        # A command, not an artefact: what a signing key makes belongs into no cache.
        **command(
            "sevsnp.vm.signed_config:sign_configs",
            alone=True,
            configs=configs,
            id_key=id_key,
            author_key=author_key,
            template=Path("templates/vm-config.toml.j2"),
            output=output,
        ),
        "file_dep": [str(path) for path in (*configs, id_key, author_key) if path],
        "targets": [str(output / name) for name in made],
        "uptodate": [],
    }
