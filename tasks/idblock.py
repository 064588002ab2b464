"""The ID block: the guest's owner signs its launch digest, and the secure processor starts nothing else under it."""

from tasks.graph import Task, command
from tasks.project import VERITY, settings
from tasks.verity import config


def task_idblock() -> Task:
    """Sign the ID block of the verified guest with id_key.pem and author_key.pem of CONFIG_DIR"""
    # Never up to date and never cached: an encrypted key is asked for at the terminal, and a signature is random.
    return command(
        "sevsnp.attestation.idblock_cli:make_id_blocks",
        needs=["_verity_config", "_verity_config_emulated"],
        alone=True,
        vm_configs=[config("snp"), config("emulated")],
        id_key=settings().config_dir() / "id_key.pem",
        author_key=settings().config_dir() / "author_key.pem",
        output=VERITY,
    )
