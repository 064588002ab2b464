# SPDX-License-Identifier: Apache-2.0
"""The inputs of every task, written by hand: the table for the matrix of edits, and what each edit must make outdated.

Paths are relative to the project; those with ``~/`` to the directory of the user's keys.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.support.matrix_settings import (
    BUNDLES,
    CMDLINES,
    CONFIGS,
    FROM_TARS,
    LUKS,
    LUKS_CMDLINES,
    LUKS_CONFIGS,
    NONE,
    PACKED,
    VERITY,
)

STOCK_FIRMWARE = "build/snp-release/usr/share/ovmf/OVMF.amdsev.fd"
FIRMWARE = "build/firmware/OVMF.fd"
RELEASE = "build/snp-release/packages.json"
VMLINUZ = "build/kernel/vmlinuz"
STAGE_CODE, ACPI_TABLES, STAGE = "build/boot/stage.bin", "build/boot/acpi-1.bin", "build/boot/stage-1.efi"
IMAGE, TREE, ROOTHASH = "build/verity/verity.img", "build/verity/hash-tree.img", "build/verity/roothash.txt"
COPIED = "build/verity/copied.json"
GUEST = ("build/guest/packages.tar", "guest-vm/guest.yaml", "~/user_ed25519.pub")
DENIED = "guest-vm/denied.yaml"
VOLUME = "build/luks/luks.img"
LUKS_HEADER = ("build/luks/header.bin", "build/luks/header.sha256", "build/luks/tables.sha256")
E2E_VOLUME = "build/e2e/luks.img"
E2E_HEADER = ("build/e2e/header.bin", "build/e2e/header.sha256", "build/e2e/tables.sha256")
TEMPLATE = "templates/vm-config.toml.j2"
MODULES = ("initramfs/modules.yaml", "build/kernel/version", VMLINUZ)
# A host bundle contains every byte of some of our sources (test_bundle.py lists them). These stand for all of them.
CARRIED = (
    "sevsnp/errors.py", "sevsnp/host/bundle_run.py", "sevsnp/vm_config/cmdline.py", "sevsnp/emulation/service.py",
)  # fmt: skip
TOOLS = ("get_report", "get_report_emulated", "verify_report", "verify_report_emulated", "inspect_report", "measure",
         "idblock-generator", "sev-feature-info", "tcb-floors")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A task: the files that it reads and makes, the files edited in its trees, and the tools that it uses."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    trees: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    directories: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()

    def makes(self, path: str) -> bool:
        return path in self.outputs or any(path.startswith(f"{tree}/") for tree in self.trees)

    def reads(self, path: str) -> bool:
        return path in self.inputs or any(path.startswith(f"{directory}/") for directory in self.directories)


def layer(name: str) -> str:
    return f"build/layers/{name}.cpio.zst"


def joined(*layers: str, to: str) -> Row:
    return Row(layers, (to,))


def config(workflow: str, initrd: str, suffix: str, *disks: str, place: str = "") -> Row:
    place = place or f"build/{workflow}"
    kernel = (STAGE, STAGE_CODE, ACPI_TABLES, VMLINUZ)
    inputs = (TEMPLATE, FIRMWARE, *kernel, initrd, f"{place}/cmdline{suffix}", *disks)
    return Row(
        (*inputs, "~/owner_certificate.pem"),
        (f"{place}/vm-config-{workflow}{suffix}.toml",),
        distributions=("jinja2",),
    )


def bundle(workflow: str, directory: str, *disks: str, place: str = "") -> Row:
    place = place or f"build/{workflow}"
    configs = (f"{place}/vm-config-{workflow}{suffix}.toml" for suffix in ("", ".emulated"))
    return Row(
        (*configs, TEMPLATE, "templates/bundle-run", *CARRIED, *disks, RELEASE),
        trees={directory: (f"{directory}/run", f"{directory}/launch.toml")},
        distributions=("jinja2",),
    )


def files(name: str, *sources: str) -> Row:
    return Row(("initramfs/files.yaml", *sources), (layer(name),), distributions=("zstandard",))


def packages(set_name: str, name: str) -> Row:
    inputs = ("initramfs/files.yaml", f"build/debs/{set_name}/packages.json")
    return Row(inputs, (layer(name),), distributions=("zstandard",))


def modules(name: str) -> Row:
    return Row(MODULES, (layer(name),), distributions=("zstandard",))


ROWS: dict[str, Row] = {
    "packages": Row(
        (
            "packages.lock",
            "tasks/packages.yaml",
            "initramfs/packages.yaml",
            "guest-vm/packages.yaml",
            "initramfs/appliance/packages.yaml",
        ),
        trees={
            "build/snp-release": (RELEASE, STOCK_FIRMWARE, "build/snp-release/bin/qemu-system-x86_64"),
            "build/debs/initramfs": ("build/debs/initramfs/packages.json",),
            "build/debs/guest": ("build/debs/guest/packages.json",),
            "build/debs/appliance": ("build/debs/appliance/packages.json",),
        },
    ),
    "_firmware": Row((STOCK_FIRMWARE, RELEASE), (FIRMWARE,)),
    "unpack_kernel": Row((RELEASE,), trees={"build/kernel": (VMLINUZ, "build/kernel/version", "build/kernel/config")}),
    "_stage_code": Row((RELEASE,), (STAGE_CODE,), directories=("initramfs/stage",)),
    "_acpi_tables": Row((), (ACPI_TABLES,)),
    "_stage": Row((STAGE_CODE, ACPI_TABLES, VMLINUZ), (STAGE,)),
    "_base_layer": packages("initramfs", "base"),
    "_appliance_packages_layer": packages("appliance", "appliance-packages"),
    "_modules_layer": modules("modules"),
    "_appliance_modules_layer": modules("appliance-modules"),
    "_emulated_modules_layer": modules("emulated-modules"),
    "_init_layer": files(
        "init",
        "initramfs/init",
        "initramfs/linux.py",
        "initramfs/boot_words.py",
        "initramfs/device_lock.py",
        "initramfs/dm_tables.py",
        "initramfs/verity_root.py",
        "initramfs/luks_root.py",
        "initramfs/data_disk.py",
        "initramfs/root_guard.py",
        "initramfs/agent.py",
        "initramfs/key_agent.py",
        "initramfs/clients.py",
        "initramfs/network.py",
        "initramfs/resolver.py",
        "initramfs/lease",
        "initramfs/get_report.py",
        "initramfs/passwd",
        "sevsnp/attestation/report_data.py",
    ),
    "_emulated_layer": files("emulated", "initramfs/emulated/emulated_provider.py"),
    "_plain_layer": files("plain", "initramfs/plain-init", "initramfs/linux.py"),
    "_appliance_layer": files(
        "appliance",
        "initramfs/appliance/init",
        "initramfs/linux.py",
        "initramfs/dm_tables.py",
        "initramfs/appliance/luks.py",
        "initramfs/appliance/luks_tables.py",
        "initramfs/appliance/import_image.py",
        "initramfs/appliance/volumes.py",
        "initramfs/appliance/roots.py",
        "initramfs/appliance/gpt.py",
        "initramfs/appliance/lvm.py",
        "initramfs/appliance/md.py",
        "initramfs/appliance/copies.py",
        "initramfs/appliance/kernel_log.py",
        "initramfs/appliance/describe.py",
        "initramfs/appliance/mount_units.py",
        "initramfs/appliance/fstab.py",
        "initramfs/appliance/tree_tar.py",
        "sevsnp/archives/links.py",
        "sevsnp/archives/ustar.py",
    ),
    "_appliance_initramfs": joined(
        layer("base"),
        layer("modules"),
        layer("appliance-packages"),
        layer("appliance-modules"),
        layer("appliance"),
        to="build/initramfs.appliance.cpio.zst",
    ),
    "initramfs": joined(layer("base"), layer("modules"), layer("init"), to="build/initramfs.cpio.zst"),
    "_plain_initramfs": joined(layer("base"), layer("modules"), layer("plain"), to="build/initramfs.plain.cpio.zst"),
    "_emulated_initramfs": joined(
        "build/initramfs.cpio.zst",
        layer("emulated-modules"),
        layer("emulated"),
        to="build/initramfs.emulated.cpio.zst",
    ),
    "_guest_packages": Row(
        ("build/debs/guest/packages.json",),
        ("build/guest/packages.tar",),
        programs=("mmdebstrap", "apt-get", "dpkg"),
    ),
    "_guest_rootfs": Row(
        GUEST,
        ("build/guest/rootfs.tar",),
        directories=("guest-vm/files",),
    ),
    "create_new_vm": Row(
        ("build/guest/rootfs.tar", VMLINUZ, "build/initramfs.plain.cpio.zst", RELEASE),
        ("build/guest/sevsnptest.qcow2",),
    ),
    "_verity_root": Row((*GUEST, DENIED, RELEASE), (IMAGE, TREE, ROOTHASH, COPIED), directories=("guest-vm/files",)),
    "_verity_cmdline": Row((IMAGE, ROOTHASH, COPIED), ("build/verity/cmdline",)),
    "_verity_cmdline_emulated": Row((IMAGE, ROOTHASH, COPIED), ("build/verity/cmdline.emulated",)),
    "_verity_config": config("verity", "build/initramfs.cpio.zst", "", IMAGE, TREE),
    "_verity_config_emulated": config("verity", "build/initramfs.emulated.cpio.zst", ".emulated", IMAGE, TREE),
    "_luks_image": Row(
        (*GUEST, DENIED, VMLINUZ, "build/initramfs.appliance.cpio.zst", RELEASE),
        (VOLUME, *LUKS_HEADER),
        directories=("guest-vm/files",),
    ),
    "_e2e_image": Row(
        (*GUEST, DENIED, VMLINUZ, "build/initramfs.appliance.cpio.zst", RELEASE),
        (E2E_VOLUME, *E2E_HEADER),
        directories=("guest-vm/files",),
    ),
    "_luks_cmdline": Row((*LUKS_HEADER, "~/owner_certificate.pem"), ("build/luks/cmdline",)),
    "_luks_cmdline_emulated": Row((*LUKS_HEADER, "~/owner_certificate.pem"), ("build/luks/cmdline.emulated",)),
    "_e2e_cmdline": Row((*E2E_HEADER, "~/owner_certificate.pem"), ("build/e2e/cmdline",)),
    "_e2e_cmdline_emulated": Row((*E2E_HEADER, "~/owner_certificate.pem"), ("build/e2e/cmdline.emulated",)),
    "_luks_config": config("luks", "build/initramfs.cpio.zst", "", VOLUME),
    "_luks_config_emulated": config("luks", "build/initramfs.emulated.cpio.zst", ".emulated", VOLUME),
    "_e2e_config": config("luks", "build/initramfs.cpio.zst", "", E2E_VOLUME, place="build/e2e"),
    "_e2e_config_emulated": config(
        "luks", "build/initramfs.emulated.cpio.zst", ".emulated", E2E_VOLUME, place="build/e2e"
    ),
    "host_bundle": bundle("verity", "build/host-bundle", IMAGE, TREE),
    "host_bundle_luks": bundle("luks", "build/host-bundle-luks", VOLUME),
    "_e2e_bundle": bundle("luks", "build/e2e/host-bundle-luks", E2E_VOLUME, place="build/e2e"),
    "build_tools": Row(
        ("initramfs/get_report.py", "initramfs/emulated/emulated_provider.py"),
        tuple(f"build/bin/{name}" for name in TOOLS),
    ),
}

# An edit of one line in a module, and the tasks that the module makes: for each function a module that few others
# reach.
RECIPES: dict[str, frozenset[str]] = {
    "sevsnp/packages/steps.py": frozenset({"packages", "unpack_kernel"}),
    "sevsnp/firmware/make.py": frozenset({"_firmware"}),
    "sevsnp/images/initramfs.py": PACKED,
    "sevsnp/images/guest_packages.py": frozenset({"_guest_packages"}),
    "sevsnp/images/guest_config.py": frozenset({"_guest_rootfs"}) | VERITY | LUKS,
    "sevsnp/images/disk.py": frozenset({"create_new_vm"}),
    "sevsnp/images/identity.py": VERITY | LUKS,
    "sevsnp/qemu/appliance.py": LUKS,
    "sevsnp/images/luks2.py": LUKS,
    "sevsnp/keys/luks_key.py": LUKS,
    "sevsnp/images/stage_code.py": frozenset({"_stage_code"}),
    "sevsnp/stage/tables.py": frozenset({"_acpi_tables", "_stage", "build_tools"}) | CONFIGS | LUKS_CONFIGS,
    "sevsnp/stage/image.py": frozenset({"_stage", "build_tools"}) | CONFIGS | LUKS_CONFIGS,
    "sevsnp/measurement/make_cmdline.py": CMDLINES | LUKS_CMDLINES,
    "sevsnp/measurement/make_config.py": CONFIGS | LUKS_CONFIGS,
    "sevsnp/release/bundle.py": BUNDLES,
    "sevsnp/commands/tools.py": frozenset({"build_tools"}),
    # It is also an input of a layer.
    "sevsnp/attestation/report_data.py": frozenset({"build_tools"}),
    "sevsnp/emulation/verify.py": frozenset({"build_tools"}),
    # Many tasks reach it.
    "sevsnp/archives/tar.py": PACKED | VERITY | LUKS | FROM_TARS,
    # These two are also inputs of the appliance's layer.
    "sevsnp/archives/links.py": VERITY | LUKS,
    "sevsnp/archives/ustar.py": PACKED | VERITY | LUKS | FROM_TARS,
    "sevsnp/vm_config/cmdline.py": CMDLINES | CONFIGS | LUKS_CMDLINES | LUKS_CONFIGS | LUKS | {"build_tools"},
    "sevsnp/errors.py": frozenset(ROWS),
    # The module that starts the appliance names it.
    "sevsnp/emulation/service.py": LUKS,
    # These make nothing; a bundle contains the first.
    "sevsnp/host/bundle_run.py": NONE,
    "sevsnp/e2e/run.py": NONE,
    "sevsnp/pipeline/reporter.py": NONE,
    "sevsnp/pipeline/run_log.py": NONE,
    "sevsnp/store/local.py": NONE,
    "sevsnp/store/artefact.py": NONE,
    "sevsnp/store/making.py": NONE,
    "sevsnp/store/replacing.py": NONE,
    "tasks/verity.py": NONE,
    "tasks/graph.py": NONE,
    "dodo.py": NONE,
    "config.yaml": NONE,
    "README.md": NONE,
}


def inputs_of(path: str) -> frozenset[str]:
    return frozenset(name for name, row in ROWS.items() if row.reads(path))


def readers(path: str) -> frozenset[str]:
    return inputs_of(path) | RECIPES.get(path, NONE)


def makers(path: str) -> frozenset[str]:
    return frozenset(name for name, row in ROWS.items() if row.makes(path))


def runners(tool: str) -> frozenset[str]:
    return frozenset(name for name, row in ROWS.items() if tool in (*row.programs, *row.distributions))


def tools(kind: str) -> list[str]:
    return sorted({tool for row in ROWS.values() for tool in getattr(row, kind)})


def _unique(paths: Iterable[str]) -> list[str]:
    return sorted(set(paths))


def cells() -> dict[tuple[str, str], frozenset[str]]:
    """Each kind of edit of each thing, and the tasks that it makes outdated by itself."""
    found: dict[tuple[str, str], frozenset[str]] = {("nothing", ""): NONE}
    made = _unique(
        path for row in ROWS.values() for path in (*row.outputs, *(p for t in row.trees.values() for p in t))
    )
    listed = ["guest-vm/files/etc/fstab"]
    read = _unique(path for row in ROWS.values() for path in row.inputs if path not in made)
    for path in (*read, *listed, *made):
        for kind in ("content", "content, time and size kept"):
            found[kind, path] = readers(path) | makers(path)
        # The mode in the checkout does not count; that of an output does.
        found["mode", path] = makers(path)
        found["touched", path] = NONE
    for path in RECIPES:
        found["a line more", path] = readers(path)
        # Every byte of an artefact's input counts; of the code that makes it, comments do not.
        found["a remark more", path] = inputs_of(path)
    for path in made:
        found["deleted", path] = readers(path) | makers(path)
    for tree in _unique(tree for row in ROWS.values() for tree in row.trees):
        owner = frozenset(name for name, row in ROWS.items() if tree in row.trees)
        found["a file planted", tree] = found["a directory planted", tree] = found["mode", tree] = owner
    found["a directory planted", "build/host-bundle/state"] = NONE  # files that a guest leaves if it runs there
    for directory in _unique(path for row in ROWS.values() for path in row.directories):
        found["a file planted", directory] = found["a directory planted", directory] = readers(f"{directory}/x")
        found["mode", directory] = NONE
    found["executable", listed[0]] = readers(listed[0])
    for program in (*tools("programs"), "mke2fs"):
        found["another program", program] = runners(program)
    for distribution in (*tools("distributions"), "rich"):
        found["another version", distribution] = runners(distribution)
    return found
