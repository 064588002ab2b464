"""The encrypted workflow's guest: launch, and the release of its key."""

from pathlib import Path

from tasks.graph import UNLISTED, Task, command
from tasks.luks import HEADER, config
from tasks.project import RUN, asked, guest_name, launching, release_manifest, settings
from tasks.vm_config import launched


def task_run_sev_snp_luks() -> Task:
    """Boot the encrypted guest, which waits for attest_luks [MEMORY NAME DETACH …]

    Boots the guest that setup_luks has made, in the foreground, until it ends. It waits for its disk key, which only
    attest_luks of its owner can send. What the guest writes to its disk stays.

    Next: ./doitw attest_luks in a second terminal, with PLATFORM=emulated for an emulated guest.
    """
    text = settings().text
    return launching(
        "sevsnp.vm.run:run_workflow",
        "run_sev_snp_luks",
        "luks",
        directory=launched(config("snp")).parent,
        workflow="luks",
        vm_config=settings().path("VM_CONFIG", Path()) if text("VM_CONFIG") else None,
        disks={},
        asked=asked(),
        platform=text("PLATFORM"),
    )


def task_attest_luks() -> Task:
    """Verify the waiting guest, then send it its disk key [PLATFORM NAME HOST PORT …]

    Verifies the guest that waits for its disk key, as attest_verity does, and that this very connection and this very
    volume are in its report. Only then is the key sent. An emulated guest gets the key that was made here, which is
    then no longer sent to confidential guests.

    Next: log in with the command that it prints.
    """
    values = settings()
    return command(
        "sevsnp.attesting:luks",
        needs=["_keys"],
        name=guest_name("luks"),
        runs=RUN,
        vm_config=values.path("VM_CONFIG", launched(config(values.text("PLATFORM")))),
        header=HEADER,
        config_dir=values.config_dir(),
        key_file=values.text("LUKS_KEY_FILE"),
        asked=asked(),
        host=values.text("HOST"),
        port=values.number("PORT") or values.number("ATTEST_PORT"),
        ssh_port=values.number("SSH_PORT"),
        emulated_root=values.path("EMULATED_ROOT", RUN / guest_name("luks") / "ark.pem"),
        user="user",
        template=Path("templates/ssh_config.j2"),
        **release_manifest(),
    )


def task_attest_luks_vm() -> Task:
    """The same as attest_luks, under its first name"""
    return {"actions": None, "task_dep": ["attest_luks"], "meta": UNLISTED}
