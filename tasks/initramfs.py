"""The initramfs, in layers: base packages, kernel modules, init and agent; and the emulated platform's own layers."""

from pathlib import Path

from sevsnp.images.lists import layer_sources
from tasks.graph import Task, artefact
from tasks.project import BUILD, DEBS, EMULATED_INITRAMFS, INITRAMFS, KERNEL, PLAIN_INITRAMFS, checked

LAYERS = BUILD / "layers"
FILES = Path("initramfs/files.yaml")
MODULES = Path("initramfs/modules.yaml")
VERSION = KERNEL / "version"


def layer(name: str) -> Path:
    return LAYERS / f"{name}.cpio.zst"


def task__base_layer() -> Task:
    """The initramfs's base packages as a cpio layer."""
    return artefact(
        "sevsnp.images.initramfs:make_base_layer",
        inputs={"manifest": DEBS / "initramfs" / "packages.json", "files": FILES},
        distributions=["zstandard"],
        outputs={"output": layer("base")},
    )


def task__modules_layer() -> Task:
    """The initramfs's kernel modules as a cpio layer."""
    return _modules("base", "modules")


def task__init_layer() -> Task:
    """init, the agent and our other files as a cpio layer."""
    return _files("init", "init")


def task__emulated_modules_layer() -> Task:
    """The modules that only emulated VM configs have, as a cpio layer."""
    return _modules("emulated", "emulated-modules")


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


def task_initramfs() -> Task:
    """Assemble build/initramfs.cpio.zst from its layers"""
    return artefact(
        "sevsnp.images.initramfs:join_layers",
        inputs={"layers": [layer("base"), layer("modules"), layer("init")]},
        outputs={"output": INITRAMFS},
    )


def task__emulated_initramfs() -> Task:
    """The initramfs with the emulated platform's layers on top."""
    return artefact(
        "sevsnp.images.initramfs:join_layers",
        inputs={"layers": [INITRAMFS, layer("emulated-modules"), layer("emulated")]},
        outputs={"output": EMULATED_INITRAMFS},
    )


def _modules(list_name: str, name: str) -> Task:
    return artefact(
        "sevsnp.images.initramfs:make_modules_layer",
        inputs={"version": VERSION, "modules": MODULES},
        # Two builds of one version have different modules; the kernel image tells them apart.
        watch=[KERNEL / "vmlinuz"],
        outputs={"output": layer(name)},
        params={"layer": list_name},
        distributions=["zstandard"],
    )


def _files(list_name: str, name: str) -> Task:
    return artefact(
        "sevsnp.images.initramfs:make_files_layer",
        inputs={"files": FILES, "sources": checked(layer_sources, FILES, list_name)},
        outputs={"output": layer(name)},
        params={"layer": list_name},
        distributions=["zstandard"],
    )
