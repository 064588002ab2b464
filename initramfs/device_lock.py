# SPDX-License-Identifier: Apache-2.0
"""Lock the guest's devices, as the last step of init before the guest's own programs run.

At this time every driver that the guest needs has its devices. After the lock no driver takes another device, and the
drivers that only a host could use have lost theirs. The modules that the guest's root names are loaded, and then the
kernel loads no more modules. init executes no program of the root for this: in an encrypted guest, such a program may
come from an attacker who was root there earlier.
"""

import os

import linux

# The devices on the machine's own buses keep their drivers, except these drivers, through which a host can send data.
_MACHINE = {"acpi", "container", "cpu", "memory", "node", "platform", "pnp", "serial-base"}
_SPEAKERS = {"fw_cfg", "i8042", "tpm_crb", "tpm_tis"}
# On every other bus, all drivers lose all of their devices, except these drivers.
_KEPT = {("pci", "pcieport"), ("pci", "virtio-pci"), ("virtio", "virtio_blk"), ("virtio", "virtio_net")}
# The driver through which the software secure processor answers.
EMULATED = ("virtio", "virtio_console")
# When a driver loses a device, the device below it becomes useless: keyboard, then hub, then controller, then card.
_LEVELS = 4
_REPORT_MODULES = ("sev_guest", "tsm")
_MODULE_LISTS = ("etc", "usr/local/lib", "usr/lib", "lib")
# On the serial console, a break is the SysRq key. Without this, an image's own settings would switch SysRq on again.
_RUN = {
    "sysctl.d/zz-host-input.conf": "kernel.sysrq = 0\n",
    "systemd/system.conf.d/zz-host-input.conf": "[Manager]\nCtrlAltDelBurstAction=none\n",
}


def close_buses(sysfs: str) -> None:
    """From now on a new device gets no driver, and a newly loaded driver gets no device.

    The exception is a card in a PCI slot, to which the kernel gives a driver anyway. Therefore no slot may keep its own
    driver, and the command line has further words against slots.
    """
    for bus in os.listdir(f"{sysfs}/bus"):
        path = f"{sysfs}/bus/{bus}/drivers_autoprobe"
        _write(path, "0")
        if linux.read(path).strip() != "0":
            raise linux.Stop(f"{path}: still on")


def lock(root: str, *, ports: bool, reports: bool) -> None:
    """Lock all devices through ``root``, where /dev, /proc, /run and /sys are mounted.

    ``ports`` keeps virtio-serial ports, ``reports`` the interface to the secure processor.
    """
    sysfs = f"{root}/sys"
    kept = _KEPT | ({EMULATED} if ports else set())
    close_buses(sysfs)
    if not reports:
        _close_reports(sysfs)
    load_root_modules(root)
    # A loaded module may have added a bus of its own.
    close_buses(sysfs)
    _unbind(sysfs, kept)
    if left := _unwanted(sysfs, kept):
        raise linux.Stop(f"still bound: {', '.join('/'.join(one) for one in left)}")
    for name in ("modules_disabled", "kexec_load_disabled"):
        path = f"{root}/proc/sys/kernel/{name}"
        _write(path, "1")
        if linux.read(path).strip() != "1":
            raise linux.Stop(f"{path}: still off")
    # Check again: a module file of the root can have any name, so it may have brought the report interface back.
    if not reports and (back := _report_modules(sysfs)):
        raise linux.Stop(f"the root's modules brought {', '.join(back)} back")
    ignore_host_keys(f"{root}/run")


def bound(sysfs: str) -> "list[tuple[str, str, str]]":
    """Every device that has a driver: bus, driver, device."""
    found = []
    for bus in sorted(os.listdir(f"{sysfs}/bus")):
        drivers = f"{sysfs}/bus/{bus}/drivers"
        for driver in sorted(os.listdir(drivers)):
            for name in sorted(os.listdir(f"{drivers}/{driver}")):
                path = f"{drivers}/{driver}/{name}"
                if os.path.islink(path) and name != "module":
                    found.append((bus, driver, name))
    return found


def _unwanted(sysfs: str, kept: "set[tuple[str, str]]") -> "list[tuple[str, str, str]]":
    return [
        (bus, driver, device)
        for bus, driver, device in bound(sysfs)
        if (driver in _SPEAKERS if bus in _MACHINE else (bus, driver) not in kept)
        or (driver == "virtio-pci" and not _has_use(f"{sysfs}/bus/{bus}/devices/{device}"))
    ]


def _has_use(card: str) -> bool:
    """Whether a driver has the virtio device on this PCI card."""
    return any(os.path.islink(f"{card}/{name}/driver") for name in os.listdir(card) if name.startswith("virtio"))


def _unbind(sysfs: str, kept: "set[tuple[str, str]]") -> None:
    for _ in range(_LEVELS):
        for bus, driver, device in _unwanted(sysfs, kept):
            if os.path.islink(f"{sysfs}/bus/{bus}/drivers/{driver}/{device}"):  # not yet gone with another device
                _write(f"{sysfs}/bus/{bus}/drivers/{driver}/unbind", device)


def _close_reports(sysfs: str) -> None:
    """Remove the report interface, because a program that can request reports could impersonate this initramfs.

    A removed module cannot be loaded again after the lock.
    """
    if os.path.ismount(f"{sysfs}/kernel/config"):
        linux.unmount(f"{sysfs}/kernel/config")
    for module in _report_modules(sysfs):
        linux.unload_module(module)


def _report_modules(sysfs: str) -> "list[str]":
    return [name for name in _REPORT_MODULES if os.path.isdir(f"{sysfs}/module/{name}")]


def load_root_modules(root: str) -> None:
    """Load the modules that the root's /etc/modules and modules-load.d name, with their dependencies, from its files.

    The modules get no options, because modprobe.d is not read. A name that is not found causes no error here;
    systemd-modules-load reports it later.
    """
    names = root_modules(root)
    needed = module_files(f"{root}/lib/modules/{os.uname().release}") if names else {}
    for name in names:
        try:
            for path in needed.get(name.replace("-", "_"), []):
                linux.load_module(path)
        except OSError as error:
            print(f"init: the root's module {name}: {error.strerror}", flush=True)


def module_files(directory: str) -> "dict[str, list[str]]":
    """For each module (by name, with _ for -) the files to load, in load order. Source: modules.dep."""
    path = f"{directory}/modules.dep"
    found = {}
    for line in linux.read(path).splitlines() if os.path.isfile(path) else []:
        module, _, others = line.partition(":")
        name = os.path.basename(module).partition(".ko")[0].replace("-", "_")
        found[name] = [f"{directory}/{file}" for file in (*reversed(others.split()), module)]
    return found


def root_modules(root: str) -> "list[str]":
    """The names of the modules that the root loads. As in systemd, the first directory that has a file name wins."""
    files = {"": f"{root}/etc/modules"}
    for folder in _MODULE_LISTS:
        path = f"{root}/{folder}/modules-load.d"
        for name in sorted(os.listdir(path)) if os.path.isdir(path) else []:
            if name.endswith(".conf"):
                files.setdefault(name, f"{path}/{name}")
    names: dict[str, None] = {}
    for _, path in sorted(files.items()):
        if os.path.isfile(path) and not os.path.islink(path):  # a link could lead out of the root
            for line in linux.read(path).splitlines():
                words = line.split()
                if words and words[0][0] not in "#;-":
                    names[words[0]] = None
    return list(names)


def ignore_host_keys(run: str) -> None:
    """Configure systemd so that SysRq stays off, and Ctrl-Alt-Del starts nothing."""
    for name, text in _RUN.items():
        os.makedirs(os.path.dirname(f"{run}/{name}"), exist_ok=True)
        with open(f"{run}/{name}", "w", encoding="ascii") as stream:
            stream.write(text)
    os.makedirs(f"{run}/systemd/system", exist_ok=True)
    os.symlink("/dev/null", f"{run}/systemd/system/ctrl-alt-del.target")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as stream:
        stream.write(text)
