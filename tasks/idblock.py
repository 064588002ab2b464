# SPDX-License-Identifier: Apache-2.0
"""The ID block of a workflow's guests. It is signed; with it the secure processor starts no other guest."""

from collections.abc import Iterator
from pathlib import Path

from tasks import luks, verity
from tasks.graph import Task, command
from tasks.project import E2E, signing_key

_CODE = [Path("sevsnp/measurement") / name for name in ("id_block.py", "signed_config.py")]


def task_idblock() -> Iterator[Task]:
    """Sign ID blocks for the VM configs: idblock:verity, idblock:luks [ID_KEY …]

    Writes the VM configs again, each with an ID block: what the owner signs so that the secure processor starts nothing
    else with it. ID_KEY signs the block; AUTHOR_KEY signs the ID key, and is optional. docs/id-block.md has more.

    Next: ./doitw run_sev_snp_verity ID_KEY=… AUTHOR_KEY=…
    """
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
    template = Path("templates/vm-config.toml.j2")
    return {
        # A command, not an artefact: a result of a signing key must not be in a cache.
        **command(
            "sevsnp.measurement.signed_config:sign_configs",
            alone=True,
            configs=configs,
            id_key=id_key,
            author_key=author_key,
            template=template,
            output=output,
        ),
        "file_dep": [str(path) for path in (*configs, id_key, author_key, template, *_CODE) if path],
        "targets": [str(output / name) for name in made],
        "uptodate": [],
    }
