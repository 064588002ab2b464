"""The host bundle, and the whole workflow end to end."""

from pathlib import Path

from tasks.graph import Task, artefact, command
from tasks.project import BUILD, QEMU, RELEASE, RELEASE_MANIFEST, RUN, keys, settings
from tasks.verity import IMAGE, TREE, launched

BUNDLE = BUILD / "host-bundle"


def task_host_bundle() -> Task:
    """Pack what an untrusted host needs to run the guest into build/host-bundle"""
    return artefact(
        "sevsnp.bundle:make_bundle",
        inputs={
            "production": launched("snp"),
            "emulated": launched("emulated"),
            "template": Path("templates/vm-config.toml.j2"),
            "run_script": Path("templates/bundle-run"),
        },
        # What the VM configs name; they change with the digests in them.
        watch=[IMAGE, TREE, RELEASE_MANIFEST],
        how={"release": RELEASE},
        trees={"output": (BUNDLE, ["run"])},
        ignored=["state"],  # a guest that is run from here keeps its logs there
        distributions=["jinja2"],
        cached=not settings().text("IMAGE"),
    )


def task_e2e() -> Task:
    """Do it all: build, boot with measured boot, verify, log in, shut down"""
    values = settings()
    return command(
        "sevsnp.e2e:e2e",
        needs=["host_bundle", "create_new_vm", "build_tools", "_keys"],
        bundle=BUNDLE,
        directory=launched("snp").parent,
        qemu=QEMU,
        platform=values.text("PLATFORM"),
        memory=values.number("MEMORY"),
        answers=RUN / "platform.json",
        identity=keys().user_private,
        user="user",
        template=Path("templates/ssh_config.j2"),
        output=BUILD,
        results=BUILD / "e2e.json",
    )
