# SPDX-License-Identifier: Apache-2.0
"""The host bundle, and the whole workflow from end to end."""

from pathlib import Path
from typing import Any

from sevsnp.store.recipe import reached_sources
from tasks import luks, verity
from tasks.graph import Task, artefact, command
from tasks.host import CHECKED, check
from tasks.project import BUILD, E2E, QEMU, RELEASE, RELEASE_MANIFEST, RUN, asked, keys, settings
from tasks.vm_config import launched

BUNDLE, LUKS_BUNDLE, E2E_BUNDLE = BUILD / "host-bundle", BUILD / "host-bundle-luks", E2E / "host-bundle-luks"
HARDWARE = BUILD / "hardware-test"
# The directories at a bundle's top: where guests that run from it keep their logs and disks, and those that are packed.
KEPT, OWN = ("state", "states"), ("lib", "runtime")
_NEEDS = ("host_bundle", "_e2e_bundle", "create_new_vm", "build_tools", "_keys")
# The first modules that run on the host. All modules that these import are packed too.
_ENTRIES = ("sevsnp.host.bundle_run", "sevsnp.qemu.snp")
_EMULATION, _EMULATED_ENTRY = "sevsnp.emulation", "sevsnp.emulation.launch"


def task_host_bundle() -> Task:
    """Pack what a host needs to run the guest into build/host-bundle [PLATFORM]

    Packs the verified guest into a directory that runs on another machine, where only QEMU has to be: disks, kernel,
    firmware and a program `run`. It has no key and no policy. PLATFORM=snp leaves the emulation out.

    Next: tar -C build -cS host-bundle | ssh HOST tar -x, and there ./run --help
    """
    disks = [verity.IMAGE, verity.TREE, *([verity.DATA_IMAGE] if verity.has_data() else [])]
    # The user's own files must not be shared, and a result of a signing key must not be in a cache.
    own = any(settings().text(name) for name in ("IMAGE", "FROM_INITRD", "ID_KEY")) or verity.has_data()
    return _bundle(BUNDLE, verity.config("snp"), verity.config("emulated"), disks, cached=not own)


def task_host_bundle_luks() -> Task:
    """The same for the encrypted guest, in build/host-bundle-luks

    Packs the encrypted guest likewise; its disk is in it, its key is not.

    Next: tar -C build -cS host-bundle-luks | ssh HOST tar -x, and there ./run --help
    """
    return _bundle(LUKS_BUNDLE, luks.config("snp"), luks.config("emulated"), [luks.IMAGE], cached=False)


def task__e2e_bundle() -> Task:
    """The same for end to end, with a volume of its own: an emulated guest gets no key of the user's."""
    return _bundle(E2E_BUNDLE, luks.config("snp", E2E), luks.config("emulated", E2E), [E2E / "luks.img"], cached=False)


def _bundle(output: Path, production: Path, emulated: Path, disks: list[Path], *, cached: bool) -> Task:
    # A bundle for SEV-SNP alone contains nothing of the emulation.
    alone = settings().text("PLATFORM") == "snp"
    return artefact(
        "sevsnp.release.bundle:make_bundle",
        inputs={
            "production": launched(production),
            **({} if alone else {"emulated": launched(emulated)}),
            "template": Path("templates/vm-config.toml.j2"),
            "run_script": Path("templates/bundle-run"),
            "code": _code(emulation=not alone),
        },
        # The files that the VM configs name; a VM config changes with the digests in it.
        watch=[*disks, RELEASE_MANIFEST],
        how={"release": RELEASE},
        trees={"output": (output, ["run"])},
        ignored=KEPT,
        own=OWN,
        distributions=["jinja2"],
        cached=cached,
    )


def _code(*, emulation: bool) -> list[Path]:
    entries, without = ((*_ENTRIES, _EMULATED_ENTRY), "") if emulation else (_ENTRIES, _EMULATION)
    found = {path for entry in entries for path in reached_sources(entry, without).values()}
    return sorted(path.relative_to(Path.cwd()) for path in found)


def task_e2e() -> Task:
    """Do it all: build, boot with measured boot, verify, log in, shut down

    Builds all that is not there yet, boots the verified and the encrypted guest from their host bundles, verifies each
    from outside, logs in, and shuts them down. A table at the end says what each stage has shown; build/e2e.json has it
    for programs. It ends everything that it starts.

    Next: ./doitw setup_verity, to go the same way step by step.
    """
    return command(
        "sevsnp.e2e.run:e2e",
        launches=True,
        needs=_NEEDS,
        platform=settings().text("PLATFORM"),
        output=RUN / "e2e",
        results=BUILD / "e2e.json",
        **_workflows(),
    )


def _workflows() -> dict[str, Any]:
    """The parameters of both workflows, on any platform."""
    values = settings()
    return {
        "bundle": BUNDLE,
        "luks_bundle": E2E_BUNDLE,
        "directory": launched(verity.config("snp")).parent,
        "luks_directory": launched(luks.config("snp", E2E)).parent,
        "qemu": QEMU,
        "memory": values.number("MEMORY"),
        "probe_cache": RUN / "platform.json",
        "identity": keys().user_private,
        "user": "user",
        "template": Path("templates/ssh_config.j2"),
        "luks": {
            "header": E2E / "header.bin",
            "config_dir": values.config_dir(),
            "key_dir": E2E,
            "asked": asked(),
        },
    }


def task_hardware_test() -> Task:
    """Run e2e on an SEV-SNP machine, never emulated, and pack what to send [MIN_TCB …]

    Stops at once on a host without SEV-SNP. Otherwise it does what e2e does, with SEV-SNP, and packs the results, the
    evidence, the verdicts, the VM configs, the logs and facts of the host into build/hardware-test.tar.gz, also if the
    run has failed. There is no key in it. docs/hardware.md has all steps on a new machine.

    Next: send build/hardware-test.tar.gz, and tick what it shows in docs/hardware.md
    """
    own = keys()
    return command(
        "sevsnp.e2e.hardware:hardware_test",
        launches=True,
        needs=["_snp_host", *_NEEDS],
        record=HARDWARE,
        archive=BUILD / "hardware-test.tar.gz",
        configs=[launched(verity.config("snp")), launched(luks.config("snp", E2E))],
        checked=CHECKED,
        keys=[own.user_private, own.owner_private],
        key_dir=E2E,
        **_workflows(),
    )


def task__snp_host() -> Task:
    """Stop on a host that cannot run SEV-SNP guests, before anything is built for it."""
    # As check_host, but a QEMU of the machine's own does not matter: the build's is used.
    return check([QEMU], tree="")
