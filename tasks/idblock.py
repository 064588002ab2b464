"""The ID block of a workflow's guests: signed for the secure processor, which then starts nothing else with it."""

from collections.abc import Iterator
from pathlib import Path

from tasks.graph import Task, command
from tasks.project import settings
from tasks.verity import config


def task_idblock() -> Iterator[Task]:
    """Sign an ID block for the VM configs of setup_verity [ID_KEY AUTHOR_KEY]"""
    values = settings()
    id_key, author_key = (values.path(name, Path()) if values.text(name) else None for name in ("ID_KEY", "AUTHOR_KEY"))
    configs = [config("snp"), config("emulated")]
    output = configs[0].parent / "idblock"
    made = [path.name for path in configs]
    made += [f"{kind}-block{suffix}.base64" for kind in ("id", "auth") for suffix in ("", ".emulated")]
    yield {
        "name": "verity",
        "doc": "Sign an ID block for the integrity workflow's VM configs",
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
