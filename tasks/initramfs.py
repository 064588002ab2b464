# SPDX-License-Identifier: Apache-2.0
"""The initramfs, in layers: base packages, kernel modules, init and agent; and the emulated platform's own layers."""

from functools import cache
from pathlib import Path

from sevsnp.images.lists import layer_sources
from tasks.graph import Task, artefact
from tasks.project import (
    APPLIANCE_INITRAMFS,
    BUILD,
    DEBS,
    EMULATED_INITRAMFS,
    INITRAMFS,
    KERNEL,
    PLAIN_INITRAMFS,
    checked,
    settings,
)

LAYERS = BUILD / "layers"
FILES = Path("initramfs/files.yaml")
MODULES = Path("initramfs/modules.yaml")
VERSION = KERNEL / "version"
MEASURED = ("base", "modules", "init")


def layer(name: str) -> Path:
    return LAYERS / f"{name}.cpio.zst"


def task__base_layer() -> Task:
    """The initramfs's base packages as a cpio layer."""
    return _packages("initramfs", "base")


def task__modules_layer() -> Task:
    """The initramfs's kernel modules as a cpio layer."""
    return _modules("modules", "base", "luks")


def task__init_layer() -> Task:
    """init, the agent and our other files as a cpio layer."""
    return _files("init", "init")


def task__emulated_modules_layer() -> Task:
    """The modules that only emulated VM configs have, as a cpio layer."""
    return _modules("emulated-modules", "emulated")


def task__emulated_layer() -> Task:
    """The emulated attester as a cpio layer."""
    return _files("emulated", "emulated")


def task__plain_layer() -> Task:
    """The init of the unmeasured guest as a cpio layer."""
    return _files("plain", "plain")


def task__plain_initramfs() -> Task:
    """The initramfs of the unmeasured guest."""
    return artefact(
        "sevsnp.images.initramfs:join_layers",
        inputs={"layers": [layer("base"), layer("modules"), layer("plain")]},
        outputs={"output": PLAIN_INITRAMFS},
    )


def task__appliance_packages_layer() -> Task:
    """The packages that only the appliance has, as a cpio layer."""
    return _packages("appliance", "appliance-packages")


def task__appliance_modules_layer() -> Task:
    """The modules that only the appliance has, as a cpio layer."""
    return _modules("appliance-modules", "appliance")


def task__appliance_layer() -> Task:
    """The appliance's init and jobs as a cpio layer."""
    return _files("appliance", "appliance")


def task__appliance_initramfs() -> Task:
    """The initramfs of the appliance, the throw-away VM that does what needs a kernel of its own."""
    names = ("base", "modules", "appliance-packages", "appliance-modules", "appliance")
    return artefact(
        "sevsnp.images.initramfs:join_layers",
        inputs={"layers": [layer(name) for name in names]},
        outputs={"output": APPLIANCE_INITRAMFS},
    )


def task__initrd_layer() -> Task:
    """What stays of FROM_INITRD, a distribution's own initrd, as the first layer."""
    initrd = settings().optional_path("FROM_INITRD")
    if initrd is None:
        return {"actions": None}
    return artefact(
        "sevsnp.images.from_initrd:make_initrd_layer",
        inputs={"initrd": initrd, "version": VERSION, "layers": [layer(name) for name in MEASURED]},
        outputs={"output": layer("initrd")},
        distributions=["zstandard"],
        cached=False,  # the user's own files must not be shared
    )


def task_initramfs() -> Task:
    """Assemble build/initramfs.cpio.zst from its layers [FROM_INITRD]

    Puts together what runs first in a measured guest: base packages, kernel modules, init and the attestation agent.
    Each layer is made by itself, so an edited file costs seconds. With FROM_INITRD, the content of a distribution's
    own initrd comes before them; init is still ours.

    Next: ./doitw setup_verity
    """
    own = settings().optional_path("FROM_INITRD") is not None
    first = [layer("initrd")] if own else []
    return artefact(
        "sevsnp.images.initramfs:join_layers",
        inputs={"layers": [*first, *(layer(name) for name in MEASURED)]},
        outputs={"output": INITRAMFS},
        cached=not own,
    )


def task__emulated_initramfs() -> Task:
    """The initramfs with the emulated platform's layers on top."""
    return artefact(
        "sevsnp.images.initramfs:join_layers",
        inputs={"layers": [INITRAMFS, layer("emulated-modules"), layer("emulated")]},
        outputs={"output": EMULATED_INITRAMFS},
        cached=settings().optional_path("FROM_INITRD") is None,
    )


def _packages(set_name: str, name: str) -> Task:
    return artefact(
        "sevsnp.images.initramfs:make_packages_layer",
        inputs={"manifest": DEBS / set_name / "packages.json", "files": FILES},
        distributions=["zstandard"],
        outputs={"output": layer(name)},
    )


def _modules(name: str, *lists: str) -> Task:
    return artefact(
        "sevsnp.images.initramfs:make_modules_layer",
        inputs={"version": VERSION, "modules": MODULES},
        # Two builds of one version have different modules; the kernel image distinguishes them.
        watch=[KERNEL / "vmlinuz"],
        outputs={"output": layer(name)},
        params={"lists": lists},
        distributions=["zstandard"],
    )


def _files(list_name: str, name: str) -> Task:
    return artefact(
        "sevsnp.images.initramfs:make_files_layer",
        inputs={"files": FILES, "sources": _sources()[list_name]},
        outputs={"output": layer(name)},
        params={"layer": list_name},
        distributions=["zstandard"],
    )


@cache
def _sources() -> dict[str, list[Path]]:
    """The sources that files.yaml lists, read once for all tasks."""
    return checked(layer_sources, FILES)
