# SPDX-License-Identifier: Apache-2.0
"""Adapts a foreign image to run as a guest of this project: a filter over its entries that prints every change.

The host provides such a guest's disks, console and network services: nothing in the image may take commands from them.
Passwords and identity are removed by the workflow (sevsnp.images.identity), which knows the readers of the image.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from sevsnp.archives.rootfs import Layer, make_rootfs
from sevsnp.archives.tar import Entry
from sevsnp.archives.tree import Tree
from sevsnp.images.account import add_login_account
from sevsnp.images.adopted_modules import LIST, MODULES, given_modules, kernel_modules, loaded_modules, withheld
from sevsnp.images.guest import read_public_key
from sevsnp.images.host_agents import named_services, switch_off_agents
from sevsnp.images.host_channels import Marks, read_marks
from sevsnp.images.lists import read_classes
from sevsnp.images.mount_units import is_masked, mask_mounts
from sevsnp.images.network_managers import UNIT_FOLDERS, UNITS, adopt_network
from sevsnp.system import progress
from sevsnp.system.files import scratch_directory
from sevsnp.system.text import printable

_GENERATORS = "etc/systemd/system-generators"
_GENERATOR_FOLDERS = tuple(f"{folder}-generators" for folder in UNIT_FOLDERS)

# Generators make units from the kernel command line, credentials, partition tables and disks.
_SILENT = (
    "cloud-init-generator",
    "coreos-platform-generator",
    "ds-identify",
    "ignition-generator",
    "lvm2-activation-generator",
    "systemd-debug-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-import-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-tpm2-generator",
    "zfs-mount-generator",
)
_DEVICES = "# A device named here would be whichever disk the host gives that name.\n"
_NO_SHELL = ("emergency", "rescue")
_LOADERS = ("usr/sbin/modprobe", "usr/bin/modprobe", "sbin/modprobe", "bin/modprobe")


def make_image_rootfs(
    *,
    imported: Path,
    authorized_key: Path,
    no_shell: Path,
    switched_off: Path,
    host_channels: Path,
    judged_programs: Path,
    modules: Path,
    version: Path,
    tools: Path,
    output: Path,
) -> None:
    """Write the tar ``imported``, the root of a foreign image, as one that starts as a guest, and print every change.

    ``no_shell`` is the drop-in with which a failed boot ends the guest; ``switched_off`` is switched-off.yaml;
    ``host_channels`` and ``judged_programs`` are the files of these names, which say what takes orders from the host.
    ``version`` is the file in the unpacked kernel that names its release; the modules beside it are added.
    ``modules`` is modules.yaml; the guest loads the modules of its list ``adopted`` before the kernel refuses more.
    ``tools`` is the directory with depmod.
    """
    changes: list[str] = []
    key = read_public_key(authorized_key)
    units, marks = read_switched_off(switched_off), read_marks(host_channels, judged_programs)
    with scratch_directory(output) as scratch:
        wanted = loaded_modules(modules, version)
        shipped = kernel_modules(version, tools, scratch, given_modules(modules))

        def adopted(entries: Iterable[Entry]) -> Iterable[Entry]:
            tree = Tree(entries)
            changes.extend(adopt(tree, key, no_shell.read_text(), units, marks))
            release = version.read_text().strip()
            has_loader = any(tree.has(path) for path in _LOADERS)
            # The image's own of this release must not fill the gaps.
            tree.clear(f"{MODULES}/{release}")
            for entry in shipped:
                # This index starts a unit that fails without kmod. init loads the modules with its own program.
                if has_loader or not entry.name.endswith("/modules.devname"):
                    tree.add(entry)
            changes.append(f"added: modules of the guest's kernel, {release}: those that a measured guest can need")
            changes.extend(withheld(tree, modules, version))
            tree.write(LIST, "".join(f"{name}\n" for name in wanted))
            changes.append(f"added: /{LIST}: later ones are refused, so name there what else the guest needs")
            return tree.ordered()

        progress.step("writing")
        # Times stay as they are, even those later than the epoch of the project's own files.
        make_rootfs([Layer.from_tar(imported)], output, epoch=(1 << 33) - 1, filters=[adopted])
    for line in changes:
        print(f"  {printable(line)}")


def read_switched_off(file: Path) -> dict[str, list[str]]:
    """Shell patterns of the units that can never start, by the reason. Raises UserError if the file is malformed."""
    return read_classes(file, r"[A-Za-z0-9:_.\\@*?-]+", "a unit's name or a shell pattern of it")


def adopt(
    tree: Tree, authorized_key: str, no_shell: str, switched_off: Mapping[str, Sequence[str]], marks: Marks
) -> Iterator[str]:
    """Change ``tree`` and yield a line for each change.

    ``switched_off``: patterns of units by the reason; ``marks``: how a program is known that takes orders of the host.
    """
    for name in ("etc/fstab", "etc/crypttab"):
        if any(line.strip() and not line.lstrip().startswith("#") for line in tree.text(name).splitlines()):
            yield f"emptied: /{name}"
            tree.write(name, _DEVICES)
    yield from mask_mounts(tree)
    yield from _switch_off(tree, switched_off)
    yield from switch_off_agents(tree, marks)
    yield from _no_console(tree, no_shell)
    yield from adopt_network(tree)
    yield from _keys_from_the_host(tree)
    yield from add_login_account(tree, authorized_key)


def _switch_off(tree: Tree, switched_off: Mapping[str, Sequence[str]]) -> Iterator[str]:
    units = {unit for folder in UNIT_FOLDERS for unit in tree.names(folder)}
    for why, patterns in switched_off.items():
        found = sorted(
            unit
            for unit in units
            if not unit.endswith((".wants", ".requires", ".d"))
            and any(fnmatchcase(unit, text) for text in patterns)
            and not is_masked(tree, f"{UNITS}/{unit}")
        )
        for unit in found:
            tree.link(f"{UNITS}/{unit}", "/dev/null")
        if found:
            yield f"switched off, since {why}: {', '.join(found)}"
        if services := named_services(tree, patterns):
            yield f"switched off, since {why}: {', '.join(f'/{name}' for name in services)}"
    generators = {name for folder in _GENERATOR_FOLDERS for name in tree.names(folder)} & set(_SILENT)
    silent = sorted(name for name in generators if not is_masked(tree, f"{_GENERATORS}/{name}"))
    for name in silent:
        tree.link(f"{_GENERATORS}/{name}", "/dev/null")
    if silent:
        yield f"switched off, since they make units from what the host says: {', '.join(silent)}"
    if tree.has("etc/cloud") and not tree.has("etc/cloud/cloud-init.disabled"):
        tree.write("etc/cloud/cloud-init.disabled", "")
        yield "added: /etc/cloud/cloud-init.disabled"


def _no_console(tree: Tree, no_shell: str) -> Iterator[str]:
    for name in _NO_SHELL:
        if any(tree.has(f"{folder}/{name}.service") for folder in UNIT_FOLDERS):
            folder = f"{UNITS}/{name}.service.d"
            if not any(tree.text(f"{folder}/{each}") == no_shell for each in tree.names(folder)):
                tree.write(f"{folder}/99-guest.conf", no_shell)
                yield f"added: {name}.service ends the guest, and opens no shell on the console"
    lines = tree.text("etc/inittab").splitlines()
    logins = [
        line for line in lines if not line.startswith("#") and any(w in line for w in ("getty", "sulogin", "login"))
    ]
    if logins:
        tree.write("etc/inittab", "".join(f"# {line}\n" if line in logins else f"{line}\n" for line in lines))
        yield f"switched off in /etc/inittab, since the host reads the console: {len(logins)} lines"


def _keys_from_the_host(tree: Tree) -> Iterator[str]:
    """Cloud images ask a metadata service which keys may log in; here that service would be the host's."""
    files = ["etc/ssh/sshd_config", *(f"etc/ssh/sshd_config.d/{name}" for name in tree.names("etc/ssh/sshd_config.d"))]
    for name in files:
        lines = tree.text(name).splitlines()
        asking = [line for line in lines if line.strip().lower().startswith("authorizedkeyscommand")]
        if asking:
            tree.write(name, "".join(f"# {line}\n" if line in asking else f"{line}\n" for line in lines))
            yield f"switched off in /{name}: {asking[0].strip()}"
    for folder in UNIT_FOLDERS:
        for unit in ("ssh.service.d", "sshd.service.d"):
            for name in tree.names(f"{folder}/{unit}"):
                if "authorizedkeyscommand" in tree.text(f"{folder}/{unit}/{name}").lower():
                    tree.link(f"{UNITS}/{unit}/{name}", "/dev/null")
                    yield f"switched off: {unit}/{name}, which asks the host whose keys may log in"
