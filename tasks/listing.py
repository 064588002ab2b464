# SPDX-License-Identifier: Apache-2.0
"""The order and the groups of `./doitw list`. A new task that users call by name must be named here.

`./doitw help TASK` shows the task's docstring; it finds the settings by itself.
"""

GROUPS: dict[str, tuple[str, ...]] = {
    "All of it": ("e2e", "hardware_test"),
    "A guest with a verified root (dm-verity): set up, run, attest, log in": (
        "setup_verity", "run_sev_snp_verity", "attest_verity",
    ),
    "A guest with an encrypted root (LUKS2): set up, run, attest, log in": (
        "setup_luks", "run_sev_snp_luks", "attest_luks", "update_luks", "adopt_luks",
    ),
    "The host, for guests on SEV-SNP": ("check_host", "prepare_host"),
    "Guests that run here": ("status", "logs", "console", "ssh", "stop"),
    "Your keys": ("keys", "keys_prune"),
    "For other machines and other people": (
        "host_bundle", "host_bundle_luks", "export_libvirt", "export_kubevirt", "export_vmspawn", "build_tools",
        "idblock", "manifest", "verify_manifest", "pack_release",
    ),
    "A guest whose root is not measured": (
        "create_new_vm", "run_setup", "run_guest", "run_sev_snp", "run_sev_snp_direct_boot",
    ),
    "Parts, which the others make by themselves": (
        "install_dependencies", "packages", "unpack_kernel", "initramfs",
    ),
    "QEMU, firmware and kernels from source": (
        "packages_image", "packages_build", "packages_status", "packages_fetch", "packages_clean",
    ),
    "The artefact cache": ("cache_status", "cache_prune", "cache_verify"),
    "Work on the project itself": ("test", "lint", "bench", "packages_lock", "pack_sources", "graph"),
}  # fmt: skip
