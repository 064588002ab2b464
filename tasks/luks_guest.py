"""The encrypted workflow's guest: launch, and the release of its key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.graph import UNLISTED, Task, command
from tasks.luks import config
from tasks.project import BUILD, LUKS, RUN, asked, release_manifest, run_options, settings
from tasks.vm_config import launched

# The disk that guests of an earlier release have written.
EARLIER = RUN / "luks" / "luks.img"


def task_run_sev_snp_luks() -> Task:
    """Boot the encrypted guest, which waits for attest_luks [VOLUME MEMORY …]"""
    return command(
        "sevsnp.volume_guest:run_volume",
        # What `doit clean` says boots a volume has to, without anything else.
        needs=["packages"],
        launches=True,
        **chosen_volume(),
        config_dir=settings().config_dir(),
        earlier=EARLIER,
        asked=asked(),
        platform=settings().text("PLATFORM"),
        options=run_options(RUN / "luks"),
    )


def chosen_volume() -> Mapping[str, Any]:
    """Where volumes are, and which one is meant."""
    values = settings()
    return {
        "directory": LUKS,
        "configs": launched(config("snp")).parent,
        "data_dir": values.data_dir(),
        "volume": values.text("VOLUME"),
        "vm_config": values.path("VM_CONFIG", Path()) if values.text("VM_CONFIG") else None,
    }


def task_attest_luks() -> Task:
    """Verify the waiting guest, then send it its disk key [VOLUME HOST PORT …]"""
    values = settings()
    return command(
        "sevsnp.volume_guest:attest_volume",
        needs=["_keys"],
        **chosen_volume(),
        platform=values.text("PLATFORM"),
        config_dir=values.config_dir(),
        key_file=values.text("LUKS_KEY_FILE"),
        asked=asked(),
        host=values.text("HOST"),
        port=values.number("PORT") or values.number("ATTEST_PORT"),
        ssh_port=values.number("SSH_PORT"),
        emulated_root=values.path("EMULATED_ROOT", RUN / "luks" / "ark.pem"),
        user="user",
        template=Path("templates/ssh_config.j2"),
        output=BUILD,
        **release_manifest(),
        report=LUKS / "attestation_report.bin",
    )


def task_attest_luks_vm() -> Task:
    """The same as attest_luks, under its first name"""
    return {"actions": None, "task_dep": ["attest_luks"], "meta": UNLISTED}
