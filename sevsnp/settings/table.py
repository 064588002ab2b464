# SPDX-License-Identifier: Apache-2.0
"""The table of the pipeline's settings: how each is read, its default, what is expected, and what it is for."""

import json
from dataclasses import dataclass

from sevsnp.settings.values import (
    FORWARDS,
    LEAST_MEMORY,
    Choice,
    Parser,
    cache_place,
    choice,
    commit_date,
    data_path,
    digest,
    dns_servers,
    forwards,
    guest_name,
    hex_digits,
    host_name,
    integer,
    location,
    minimum_tcb,
    no_or_yes,
    policy,
    sha256,
    size,
    size_or_none,
    text,
    volume,
    web_address,
    word,
    words,
)

# Variables that are refused on the command line and never shown, each with its description.
SECRETS = {
    "LUKS_KEY": "the key of an encrypted root or data disk: in the environment alone, and shown nowhere. LUKS_KEY_FILE "
    "names a file that has it"
}


@dataclass(frozen=True)
class Setting:
    """One setting: its name on the command line, the parser of its text, its default as text, and its purpose."""

    name: str
    parse: Parser
    default: str
    expected: str
    help: str

    @property
    def key(self) -> str:
        """The setting's name in config.yaml."""
        return self.name.lower()

    @property
    def allowed(self) -> tuple[str, ...]:
        """The allowed words, if the setting takes one of a few words."""
        return self.parse.allowed if isinstance(self.parse, Choice) else ()


_TMPFS = size(1 << 20, 1 << 40)
_PORT = integer(1, 65535)

# config.yaml, `./doitw help` and the errors for bad values all take their texts from here.
# fmt: off
GROUPS: tuple[tuple[str, tuple[Setting, ...]], ...] = (
    ("What a guest is made of and measured with: fixed when a setup_* task writes its VM config.", (
        Setting("IMAGE", text, "", "a path: a root filesystem tar, a disk image or a container image; or docker://…",
                "a root filesystem tar, a disk image (qcow2, raw, VMDK, VHDX), or a container image (OCI layout, "
                "docker save, docker://HOST/NAME:TAG, docker://NAME:TAG); empty: our own guest"),
        Setting("ROOT_DEVICE", text, "", "a device on the disk image, as /dev/vda2 or /dev/GROUP/VOLUME",
                "root partition of a disk image that has several, as /dev/vda2, UUID=… or /dev/GROUP/VOLUME"),
        Setting("KEEP", text, "", "path patterns with commas between them, as etc/ssl/private/**",
                "path patterns, separated by commas, of files to keep that the deny-list would remove from a root"),
        Setting("DROP", text, "", "path patterns with commas between them, as home/*/scratch",
                "path patterns, separated by commas, of more files to remove from a root"),
        Setting("DENY_LIST", text, "guest-vm/denied.yaml", "a path to a YAML file like guest-vm/denied.yaml",
                "the deny-list: identities, secrets and traces, which are removed from every root"),
        Setting("FROM_INITRD", text, "", "a path to an initrd",
                "a distribution's own initrd, of the guest's kernel, that comes before the layers of the initramfs"),
        Setting("PRODUCT", choice("Milan", "Genoa", "Turin"), "Genoa", "Milan, Genoa or Turin",
                "the processor that will run it (Milan, Genoa, Turin): decides the shape of its TCB version"),
        Setting("CPUS", integer(1, 255), "1", "a number of vCPUs from 1 to 255",
                "vCPUs, 1-255; each one's initial state is measured"),
        Setting("CPU_MODEL", word, "EPYC-v4", "a QEMU CPU model, as EPYC-v4 or EPYC-Genoa",
                "QEMU CPU model; its signature is part of that state"),
        Setting("POLICY", policy, "0x30000", "an SNP guest policy without debugging and migration, as 0x30000",
                "SNP guest policy: SMT allowed, no debugging, no migration"),
        Setting("GUEST_FEATURES", integer(0, (1 << 64) - 1), "0x1", "SEV_FEATURES of the VMSA, as 0x1",
                "SEV_FEATURES of each vCPU's initial state: SNP active, nothing else"),
        Setting("MIN_TCB", minimum_tcb, "", "parts of a TCB version, as bootloader:3,snp:8,microcode:115, or any",
                "least TCB version to accept, as bootloader:3,snp:8,microcode:115, or any; for single processors as "
                "cpuid:0x19/0x11,snp:8,cpuid:0x19/0xa0,snp:6; empty: no SEV-SNP evidence is accepted"),
        Setting("PLATFORM_INFO_REQUIRED", integer(0, (1 << 64) - 1), "0x0", "a mask over PLATFORM_INFO, as 0x20",
                "bits of PLATFORM_INFO that must be set, as 0x20 (memory alias check complete)"),
        Setting("PLATFORM_INFO_FORBIDDEN", integer(0, (1 << 64) - 1), "0x0", "a mask over PLATFORM_INFO, as 0x1",
                "bits of PLATFORM_INFO that must not be set, as 0x1 (SMT enabled)"),
        Setting("FAMILY_ID", hex_digits(32), "0" * 32, "32 lower-case hex digits",
                "FAMILY_ID of the guest, 16 bytes; it is in an ID block, so zero as long as there is none"),
        Setting("IMAGE_ID", hex_digits(32), "0" * 32, "32 lower-case hex digits",
                "IMAGE_ID of the guest, 16 bytes, as FAMILY_ID"),
        Setting("GUEST_SVN", integer(0, (1 << 32) - 1), "0", "a security version number from 0 to 4294967295",
                "security version number of the guest, part of the ID block, as FAMILY_ID"),
        Setting("ID_KEY", text, "", "a path to a P-384 private key in PEM",
                "P-384 private key that signs an ID block for the guest (./doitw idblock); empty: it has none"),
        Setting("AUTHOR_KEY", text, "", "a path to a P-384 private key in PEM",
                "P-384 private key that signs the ID key; empty: the ID block has none, which some firmware refuses"),
        Setting("FIRMWARE", text, "", "a path to an OVMF built from OvmfPkg/AmdSev, or source",
                "what measured guests start with: a file of yours, or source: our firmware built here from Debian's "
                "source; empty: our firmware made from Debian's build"),
        Setting("FIRMWARE_REASON", text, "", "a sentence",
                "why that firmware is trusted where it cannot be judged (docs/firmware.md); every verdict says it"),
        Setting("ACPI", choice("own", "on", "off"), "own", "own, on or off",
                "own: measured ACPI tables of this project, for 1 to 64 vCPUs; on: the host's, which are not measured "
                "and contain code that the guest runs; off: none, for one vCPU"),
        Setting("WRITABLE", choice("overlay", "copy"), "overlay", "overlay or copy",
                "/etc, /home and /var over a read-only root: an overlay, or a copy in memory"),
        Setting("TMPFS_ETC", _TMPFS, "1G", "a size, as 512M or 1G",
                "most memory that changes below /etc use"),
        Setting("TMPFS_HOME", _TMPFS, "8G", "a size, as 512M or 1G",
                "most memory that changes below /home use"),
        Setting("TMPFS_VAR", _TMPFS, "2G", "a size, as 512M or 1G",
                "most memory that changes below /var use"),
        Setting("TMPFS_TMP", _TMPFS, "1G", "a size, as 512M or 1G",
                "most memory that /tmp uses"),
        Setting("VERITY_FILESYSTEM", choice("ext4", "erofs"), "ext4", "ext4 or erofs",
                "the root's file system: ext4, or erofs, which is compressed and cannot be written to at all"),
        Setting("GUEST_DNS", dns_servers, "", "one to three IP addresses, as 192.0.2.1,2001:db8::1",
                "the guest's DNS servers, as 192.0.2.1,2001:db8::1, whatever DHCP says; empty: as the root file system "
                "has it (ours: 10.0.2.3, which is QEMU's user network)"),
        Setting("LUKS_FREE", size(16 << 20, 1 << 42), "512M", "a size from 16M, as 512M or 20G",
                "free space of the encrypted root"),
        Setting("LUKS_REPORTS", choice("closed", "open"), "closed", "closed or open",
                "open: root in the encrypted guest can ask for reports after its key came; closed: nothing can"),
    )),
    ("An encrypted data disk beside the verified root, which keeps what is written.", (
        Setting("DATA_SIZE", size_or_none(16 << 20, 1 << 42), "0", "a size from 16M, as 512M or 20G, or 0",
                "size of the file system on the verified guest's data disk; 0: it has none"),
        Setting("DATA_PATH", data_path, "/srv", "an absolute path, as /srv or /var/lib/docker",
                "where the guest has it"),
    )),
    ("Where create_new_vm takes the plain guest from.", (
        Setting("GUEST_FROM", choice("debian", "cloud-image"), "debian", "debian or cloud-image",
                "debian: the lists in guest-vm/; cloud-image: CLOUD_IMAGE, set up once by cloud-init"),
        Setting("CLOUD_IMAGE", location, "", "a path to a disk image, or an address",
                "the cloud image: a path, or an http(s) address together with CLOUD_IMAGE_SHA256"),
        Setting("CLOUD_IMAGE_SHA256", digest, "", "64 lower-case hex digits",
                "SHA-256 of the cloud image, as its publisher states it"),
        Setting("DISK_SIZE", size(1 << 20, 1 << 42), "10G", "a size, as 20G",
                "least size of the cloud guest's disk; its file grows with what is written"),
    )),
    ("Where the key of an encrypted root or data disk comes from, unless LUKS_KEY is in the environment.", (
        Setting("LUKS_KEY_FILE", text, "", "a path to a key file, or - to be asked",
                "a file of yours with the key, all of its bytes; - asks; empty: the setup task makes one"),
    )),
    ("Free at every launch: not measured.", (
        Setting("PLATFORM", choice("auto", "snp", "emulated"), "auto", "auto, snp or emulated",
                "auto: snp where a probe boots a guest with it, else emulated; snp and emulated insist"),
        Setting("MEMORY", size(LEAST_MEMORY, 1 << 42), "2G", "guest memory from 256M to 4096G, as 1536M",
                "the guest's memory, tmpfs included"),
        Setting("SSH_PORT", _PORT, "2222", "a TCP port from 1 to 65535",
                "port on this machine that leads to the guest's sshd"),
        Setting("ATTEST_PORT", _PORT, "8088", "a TCP port from 1 to 65535",
                "port on this machine that leads to the guest's attestation agent"),
        Setting("FORWARD", forwards, "", FORWARDS,
                "more ports on this machine that lead into the guest, as 8443:443 (here:guest), commas between them"),
        Setting("NAME", guest_name, "", "a guest's name: letters, digits, dots and dashes",
                "the name of the guest, and of its directory in build/run; empty: the workflow's"),
        Setting("DETACH", no_or_yes, "no", "no or yes (0 or 1)",
                "yes: run_* starts the guest without a terminal and returns once it runs"),
        Setting("GUEST_NETWORK", choice("open", "restricted"), "open", "open or restricted",
                "open: the guest reaches what this machine reaches; restricted: only the forwarded ports in"),
        Setting("VERITY_IMAGE", text, "", "a path",
                "root image to attach; empty: the one that the VM config names"),
        Setting("VERITY_HASH_TREE", text, "", "a path",
                "its hash tree; empty: the one that the VM config names"),
        Setting("VOLUME", volume, "", "the UUID of a volume, or how it begins, as 3fa1",
                "encrypted volume to run and attest, as its UUID begins; empty: that of build/luks, else the only one; "
                "setup_verity: data disk to take again"),
        Setting("VM_CONFIG", text, "", "a path to a VM config",
                "VM config to launch or to verify against; empty: the one of the workflow"),
    )),
    ("Where the guest is reached from: attest_* and ssh.", (
        Setting("HOST", host_name, "127.0.0.1", "a host name or an IP address",
                "the machine that runs the guest"),
        Setting("PORT", integer(0, 65535), "0", "the attestation port at HOST, to 65535 (0: ATTEST_PORT)",
                "the attestation port there; 0: attest_port"),
        Setting("EMULATED_ROOT", text, "", "a path to the ark.pem of a software secure processor",
                "ark.pem of the software secure processor to trust; "
                "empty: that of this guest's last start, in build/run/NAME"),
    )),
    ("What export_* writes for other launchers.", (
        Setting("EXPORT_FILES", text, "", "an absolute path: a directory on the host that launches the guest",
                "directory of the guest's files on the host that launches it; empty: where they are here"),
        Setting("LIBVIRT_NETWORK", text, "default", "the name of a network of the host's libvirt",
                "network of the host's libvirt that the guest is in"),
        Setting("KUBEVIRT_FIRMWARE", text, "", "a path to a copy of the cluster's firmware",
                "copy of the firmware in the cluster's virt-launcher image, which KubeVirt starts"),
        Setting("KUBEVIRT_KERNEL", text, "", "a container image, as registry/name@sha256:DIGEST",
                "container image with the guest's kernel as /vmlinuz and its initramfs as /initrd"),
    )),
    ("Where attest_* gets the AMD certificates that the evidence lacks. None of these is trusted.", (
        Setting("KDS_MIRROR", web_address, "", "the URL of a mirror of AMD's service, as https://kds.example.org",
                "mirror of AMD's key distribution service; empty: https://kdsintf.amd.com"),
        Setting("CERTS", text, "", "a directory with certificates and revocation lists",
                "certificates and revocation lists of your own, used before the service's"),
        Setting("OFFLINE", no_or_yes, "no", "no or yes (0 or 1)",
                "yes: no service is asked; certificates come from the evidence, CERTS and the cache"),
    )),
    ("Releases.", (
        Setting("MANIFEST", text, "", "a path to a release manifest",
                "release manifest to verify; empty: build/manifest.json"),
        Setting("MANIFEST_KEY", text, "", "a path to a private key in PEM",
                "private key that signs the manifest; empty: it is not signed"),
        Setting("MANIFEST_PUBLIC_KEY", text, "", "a path to a public key in PEM",
                "public key that must have signed it; empty: the signature is not checked"),
    )),
    ("Where QEMU, firmware and kernels come from (docs/packages.md).", (
        Setting("PACKAGES_SOURCE", choice("debian", "release", "container", "local"), "debian",
                "debian, release, container or local",
                "debian: pinned packages; release: a prebuilt archive; container, local: built from source"),
        Setting("PACKAGES_RELEASE", location, "", "the path or URL of a snp-release.tar.gz",
                "the archive of release, as a path or an http(s) URL; pack_release makes one"),
        Setting("PACKAGES_SHA256", sha256, "", "64 lower-case hex digits",
                "SHA-256 of that archive: any archive with this digest is accepted, and no other"),
        Setting("PACKAGES_PIN", choice("stable", "upstream", "amd"), "stable", "stable, upstream or amd",
                "what is built: stable: sources pinned by SHA-256; upstream: release tags; amd: AMD's branches"),
        Setting("COMMIT_DATE", commit_date, "today", "a date as 2026-01-31, or today",
                "the day (UTC) whose last commit is taken from AMD's branches, as 2026-01-31; or today"),
        Setting("BUILD_JOBS", integer(0, 1024), "0", "a number of processes to 1024 (0: one for each processor)",
                "compilers that run at once; 0: one for each processor"),
        Setting("COMPILER_CACHE", choice("off", "ccache", "sccache"), "off", "off, ccache or sccache",
                "keeps compiled files in the cache directory for the next build"),
        Setting("COMPILER_CLUSTER", choice("off", "distcc", "icecc"), "off", "off, distcc or icecc",
                "sends compilations to other machines, which can then change the result"),
        Setting("DISTCC_HOSTS", words, "", "hosts as distcc names them, separated by blanks",
                "the machines that distcc uses, as build1/8,lzo build2; icecc's own daemon knows its scheduler"),
    )),
    ("Where things are fetched from and kept.", (
        Setting("KERNEL_DEB", text, "", "a path to a linux-image package",
                "linux-image package to unpack instead of the pinned one"),
        Setting("MIRROR", location, "", "the URI of a Debian mirror, or a file that pack_sources made",
                "Debian mirror, or a file that pack_sources made; empty: as this machine's apt has it"),
        Setting("SNAPSHOT_MIRROR", location, "", "the URI of a Debian snapshot mirror, ending before the pool, or off",
                "where versions are that the mirror dropped: a URI that ends before pool/, @SNAPSHOTID@ in it stands "
                "for the time of the lock; empty: the one that apt knows of; off: none"),
        Setting("CONFIG_DIR", text, "", "a directory for the user's keys",
                "the user's and owner's keys; empty: openend2e-sevsnp in the user's configuration directory"),
        Setting("DATA_DIR", text, "", "a directory for the volumes that guests have written",
                "volumes that guests have written; empty: openend2e-sevsnp in the user's data directory"),
        Setting("CACHE_DIR", text, "", "a directory for downloaded packages",
                "downloaded packages; empty: openend2e-sevsnp in the user's cache directory"),
        Setting("SEVSNP_CACHE", text, "", "a directory for the artefact cache",
                "the artefact cache: what was made before; empty: artefacts in the cache directory"),
        Setting("CACHE", cache_place, "", "oci://host/repository, off, or nothing",
                "a registry to share it through, as oci://host/repository; off: no artefact cache at all"),
        Setting("CACHE_MODE", choice("pull", "push"), "pull", "pull or push",
                "pull: only take from the registry; push: send what was made here, too"),
        Setting("CACHE_KEY", text, "", "a path to a private key in PEM",
                "private key that signs what is sent"),
        Setting("CACHE_PUBLIC_KEY", text, "", "a path to a public key in PEM",
                "public key that must have signed what is taken; empty: everybody who may write there is trusted"),
        Setting("CACHE_SIZE", size(1 << 20, 1 << 50), "20G", "a size, as 20G",
                "what the artefact cache may take on this machine's disk"),
    )),
    ("What is shown of a run, and changes nothing that is made.", (
        Setting("VERBOSE", no_or_yes, "no", "no or yes (0 or 1)",
                "yes: every command as it starts, to paste, and how it ended; tracebacks with errors"),
    )),
)
# fmt: on
SETTINGS: tuple[Setting, ...] = tuple(setting for _, settings in GROUPS for setting in settings)

NAMES = tuple(setting.name for setting in SETTINGS)


def render_config() -> str:
    """The text of the repository's config.yaml: every setting with its default and its purpose."""
    lines = ["# The settings, each with its default. NAME=value on the command line (CPUS=2) and the environment come"]
    lines += ["# before this file. Its text is made from the table in sevsnp/settings/table.py."]
    for title, settings in GROUPS:
        lines += ["", f"# {title}"]
        for setting in settings:
            # Quote a text that YAML would read as empty, or as a number with leading zeros.
            plain = setting.default.strip("0") or setting.default == "0"
            value = setting.default if plain else json.dumps(setting.default)
            lines.append(f"{f'{setting.key}: {value}':<26} # {setting.help}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render_config(), end="")
