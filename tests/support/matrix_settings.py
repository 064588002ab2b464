# SPDX-License-Identifier: Apache-2.0
"""The settings in the table for the matrix of edits: which tasks' inputs each setting changes."""

PACKED = frozenset({"_base_layer", "_modules_layer", "_emulated_modules_layer", "_init_layer", "_emulated_layer",
                    "_plain_layer", "_appliance_layer", "_appliance_packages_layer", "_appliance_modules_layer",
                    "_appliance_initramfs", "initramfs", "_plain_initramfs", "_emulated_initramfs"})  # fmt: skip
CMDLINES = frozenset({"_verity_cmdline", "_verity_cmdline_emulated"})
CONFIGS = frozenset({"_verity_config", "_verity_config_emulated"})
VERITY = frozenset({"_verity_root"})
LUKS_CMDLINES = frozenset({"_luks_cmdline", "_luks_cmdline_emulated", "_e2e_cmdline", "_e2e_cmdline_emulated"})
LUKS_CONFIGS = frozenset({"_luks_config", "_luks_config_emulated", "_e2e_config", "_e2e_config_emulated"})
OWN_LUKS = frozenset({"_luks_image"})
LUKS = OWN_LUKS | {"_e2e_image"}
BUNDLES = frozenset({"host_bundle", "host_bundle_luks", "_e2e_bundle"})
FROM_TARS = frozenset({"_guest_packages", "_guest_rootfs", "create_new_vm"})
NONE: frozenset[str] = frozenset()

# Each setting with another value, and the tasks whose inputs it changes. {tmp} is a directory for this.
SETTINGS: dict[str, tuple[str, frozenset[str]]] = {
    "VERITY_FILESYSTEM": ("erofs", CMDLINES | {"_verity_root"}),
    "WRITABLE": ("copy", CMDLINES),
    **{f"TMPFS_{name}": ("3G", CMDLINES) for name in ("ETC", "HOME", "VAR", "TMP")},
    "ACPI": ("off", CMDLINES | LUKS_CMDLINES | CONFIGS | LUKS_CONFIGS),
    "CPUS": ("2", CONFIGS | LUKS_CONFIGS | {"_acpi_tables", "_stage"}),
    "GUEST_DNS": ("192.0.2.1", CMDLINES | LUKS_CMDLINES),
    "LUKS_FREE": ("17M", OWN_LUKS),
    # Other command lines, and VM configs with one disk more.
    "DATA_SIZE": ("16M", VERITY | CMDLINES | CONFIGS | {"host_bundle"}),
    "DATA_PATH": ("/var/lib/docker", NONE),  # without a data disk it does not matter
    "LUKS_REPORTS": ("open", LUKS_CMDLINES),
    "LUKS_KEY_FILE": ("{tmp}/no-such-key", OWN_LUKS),
    "VOLUME": ("3fa1", NONE),
    "PRODUCT": ("Milan", CONFIGS | LUKS_CONFIGS),
    "CPU_MODEL": ("EPYC-Genoa", CONFIGS | LUKS_CONFIGS),
    "POLICY": ("0x20000", CONFIGS | LUKS_CONFIGS),
    "GUEST_FEATURES": ("0x21", CONFIGS | LUKS_CONFIGS),
    "MIN_TCB": ("snp:1", CONFIGS | LUKS_CONFIGS),
    "FAMILY_ID": ("1" * 32, CONFIGS | LUKS_CONFIGS),
    "IMAGE_ID": ("1" * 32, CONFIGS | LUKS_CONFIGS),
    "GUEST_SVN": ("1", CONFIGS | LUKS_CONFIGS),
    # The bundles then contain the VM configs with an ID block.
    "ID_KEY": ("x", BUNDLES),
    "AUTHOR_KEY": ("x", NONE),
    "PLATFORM_INFO_REQUIRED": ("0x1", CONFIGS | LUKS_CONFIGS),
    "PLATFORM_INFO_FORBIDDEN": ("0x1", CONFIGS | LUKS_CONFIGS),
    "FIRMWARE": ("README.md", CONFIGS | LUKS_CONFIGS),
    "FIRMWARE_REASON": ("a test", CONFIGS | LUKS_CONFIGS),
    "IMAGE": ("README.md", VERITY | LUKS),
    "KEEP": ("etc/wireguard", VERITY | LUKS),
    "DROP": ("srv/scratch", VERITY | LUKS),
    "DENY_LIST": ("README.md", VERITY | LUKS),
    # Another disk and its seed, from other files; without a CLOUD_IMAGE there is nothing to make them from.
    "GUEST_FROM": ("cloud-image", frozenset({"create_new_vm"})),
    "CLOUD_IMAGE": ("README.md", NONE),
    "CLOUD_IMAGE_SHA256": ("1" * 64, NONE),
    "DISK_SIZE": ("20G", NONE),
    "ROOT_DEVICE": ("/dev/vda2", NONE),  # matters for a disk image only
    # Another function makes the same targets, and another one the firmware.
    "PACKAGES_SOURCE": ("release", frozenset({"packages", "_firmware"})),
    "PACKAGES_RELEASE": ("x", NONE),  # these two matter for the source "release" only
    "PACKAGES_SHA256": ("1" * 64, NONE),
    "FROM_INITRD": ("README.md", frozenset({"_initrd_layer", "initramfs"})),
    "KERNEL_DEB": ("README.md", frozenset({"unpack_kernel"})),
    # For SEV-SNP alone the bundles do not contain the emulation.
    "PLATFORM": ("snp", BUNDLES),
    "MEMORY": ("4G", NONE),
    "SSH_PORT": ("2223", NONE),
    "ATTEST_PORT": ("8089", NONE),
    "FORWARD": ("8443:443", NONE),
    "NAME": ("second", NONE),
    "DETACH": ("yes", NONE),
    "GUEST_NETWORK": ("restricted", NONE),
    "HOST": ("192.0.2.1", NONE),
    "PORT": ("1", NONE),
    "VERITY_IMAGE": ("x", NONE),
    "VERITY_HASH_TREE": ("x", NONE),
    "VM_CONFIG": ("x", NONE),
    "EMULATED_ROOT": ("x", NONE),
    "EXPORT_FILES": ("/srv", NONE),
    "LIBVIRT_NETWORK": ("x", NONE),
    "KUBEVIRT_FIRMWARE": ("x", NONE),
    "KUBEVIRT_KERNEL": ("x", NONE),
    "KDS_MIRROR": ("http://192.0.2.1/", NONE),
    "CERTS": ("x", NONE),
    "OFFLINE": ("yes", NONE),
    "PACKAGES_PIN": ("amd", NONE),
    "COMMIT_DATE": ("2026-01-31", NONE),
    "BUILD_JOBS": ("3", NONE),
    "COMPILER_CACHE": ("ccache", NONE),
    "COMPILER_CLUSTER": ("distcc", NONE),
    "DISTCC_HOSTS": ("192.0.2.1", NONE),
    "MIRROR": ("http://192.0.2.1/", NONE),
    "SNAPSHOT_MIRROR": ("http://192.0.2.1/", NONE),
    # The same keys in another place: the tasks check them again, and then copy from the cache.
    "CONFIG_DIR": ("{tmp}/keys", VERITY | CONFIGS | LUKS_CMDLINES | LUKS_CONFIGS | LUKS | {"_guest_rootfs"}),
    "DATA_DIR": ("{tmp}/data", NONE),
    "CACHE_DIR": ("{tmp}/downloads", NONE),
    "SEVSNP_CACHE": ("{tmp}/cache", NONE),
    "CACHE": ("off", NONE),
    "CACHE_MODE": ("push", NONE),
    "CACHE_SIZE": ("1G", NONE),
    "CACHE_KEY": ("{tmp}/key.pem", NONE),
    "CACHE_PUBLIC_KEY": ("{tmp}/key.pub.pem", NONE),
    "VERBOSE": ("1", NONE),
    "MANIFEST": ("x", NONE),
    "MANIFEST_KEY": ("x", NONE),
    "MANIFEST_PUBLIC_KEY": ("x", NONE),
}
# A task's parameters by name, and the setting of each; parameters that the task itself fixes have none.
PARAMETERS: dict[str, str] = {
    "filesystem": "VERITY_FILESYSTEM", "rootfs": "VERITY_FILESYSTEM", "writable": "WRITABLE", "acpi": "ACPI",
    "reports": "LUKS_REPORTS", "dns": "GUEST_DNS",
    **{f"tmpfs.{name}": f"TMPFS_{name.upper()}" for name in ("etc", "home", "var", "tmp")},
    **{f"settings.{name}": name for name in (
        "PRODUCT", "CPUS", "CPU_MODEL", "POLICY", "GUEST_FEATURES", "MIN_TCB", "FAMILY_ID", "IMAGE_ID",
        "GUEST_SVN", "PLATFORM_INFO_REQUIRED", "PLATFORM_INFO_FORBIDDEN", "FIRMWARE_REASON",
    )},
    "keep": "KEEP", "drop": "DROP", "free": "LUKS_FREE", "_e2e_image.free": "", "disks.luks": "", "lists": "",
    "label": "", "platform": "", "workflow": "", "disks.verity-data": "", "disks.verity-hash": "", "layer": "",
    "vcpus": "CPUS", "place": "", "project": "", "python": "",
}  # fmt: skip
