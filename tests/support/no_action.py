# SPDX-License-Identifier: Apache-2.0
"""The hints that no test follows, each with the reason: they ask for nothing that a test can do."""

from tests.support.table import Row

_KNOWN = "the names that are known; which of them was meant only the user can say"
_LOOK = "says where more is to be read"
_HARDWARE = "needs a host with SEV-SNP"
_OTHERS = "somebody else has to make another file; which file is said"
_IN_IMAGE = "a change inside the image, in the machine that it is from; tests/unit/images/test_image_login.py has both"
_MAKER = "which digest is right only the maker of the file can say"
_QUESTION = "asks what the user can look at; which of it is so, no program here can know"
_DEFECT = "a defect of the disk, or of the program: nothing that a user can set right here"

NO_ACTION: dict[Row, str] = {
    ("sevsnp.host.run", "see the console log: {}"): _LOOK,
    ("sevsnp.images.architecture", "give the image of this system for x86-64 (amd64)"): _OTHERS,
    (
        "sevsnp.images.kernel_needs",
        "give the package of a kernel that has it, or none: the pinned kernel has it",
    ): _OTHERS,
    ("sevsnp.stage.image", "give the package of a kernel with an EFI stub, or none: the pinned kernel has it"): _OTHERS,
    (
        "sevsnp.images.ssh_server",
        "change it in the image, or for this account alone: what a Match block may set is enough there",
    ): _IN_IMAGE,
    ("sevsnp.images.account", "change it in the image"): _IN_IMAGE,
    ("sevsnp.images.ssh_server", "install it in the image, as with: apk add openrc"): _IN_IMAGE,
    (
        "sevsnp.images.ssh_server",
        "install the service in the image, as with: apk add openssh-server openrc",
    ): _IN_IMAGE,
    (
        "sevsnp.settings.resolved",
        "the value of an option that has a = is written in one word with it, as in --command='A=1 env'",
    ): "which option the word belongs to only the user can say",
    ("sevsnp.images.guest_config", "known: {}"): _KNOWN,
    ("sevsnp.firmware.changes", "known: {}"): _KNOWN,
    ("sevsnp.packages.lock", "known: {}"): _KNOWN,
    ("sevsnp.packages.sets", "known: {}"): _KNOWN,
    ("sevsnp.guests.local", "log in with one of them: ssh -p {} ACCOUNT@127.0.0.1"): _QUESTION,
    ("sevsnp.guests.cloud_setup", "its console: {}"): _LOOK,
    ("sevsnp.images.cloud_guest", "give the digest that the maker of the image says"): _MAKER,
    ("sevsnp.packages.by_digest", "give the URL of the right file, and the SHA-256 that its publisher states"): _MAKER,
    ("sevsnp.e2e.guest", "its console: {}"): _LOOK,
    ("sevsnp.e2e.luks", "its console: {}"): _LOOK,
    ("sevsnp.project.testing", "its report is above"): _LOOK,
    ("sevsnp.project.testing", "their reports are above"): _LOOK,
    ("doitw", "nothing was installed; README.md says what there is"): _LOOK,
    ("sevsnp.packages.built", "see docs/packages.md: how it is built and fetched"): _LOOK,
    ("sevsnp.qemu.qmp", "look at its messages above"): _LOOK,
    ("sevsnp.owner.key_release", "read the guest's console"): _LOOK,
    ("sevsnp.launchers.guest", "which launcher can do what: docs/launchers.md"): _LOOK,
    ("sevsnp.launchers.guest", "a volume's VM config is beside its disk: docs/launchers.md"): _LOOK,
    ("sevsnp.host_setup.platform_status", "run it on the SNP host itself, not in a guest"): _HARDWARE,
    ("sevsnp.host_setup.platform_status", "SEV-SNP is off, or the kernel too old: {}"): _HARDWARE,
    ("sevsnp.emulation.psp", "use platform snp, or run the emulation on another machine"): _HARDWARE,
    ("sevsnp.qemu.disk_format", "ask the author of the image for a qcow2 image"): _OTHERS,
    ("sevsnp.qemu.disk_format", "ask the author of the image for one that contains all of its data"): _OTHERS,
    ("sevsnp.qemu.disk_format", "copy what is in it to a file, and give that"): _QUESTION,
    ("sevsnp.errors", "download or copy it again, and compare its digest with its author's"): _OTHERS,
    ("sevsnp.containers.manifest", "push it anew with a present tool"): _OTHERS,
    ("sevsnp.measurement.ovmf", "give an SVSM as QEMU starts it beside an OVMF, not an IGVM file"): _OTHERS,
    (
        "sevsnp.archives.tar",
        "give a root file system as a tar archive, or as a disk image (qcow2, raw, VMDK, VHDX or VHD)",
    ): _OTHERS,
    ("sevsnp.images.kernel_modules", "build the kernel with CONFIG_MODULE_SIG_ALL=y"): _OTHERS,
    ("sevsnp.attestation.report", "a newer version of this verifier may know it"): _OTHERS,
    ("sevsnp.packages.resolve", "use a mirror whose indices have SHA-256"): _OTHERS,
    ("sevsnp.images.filesystem", "{} was just made: is the disk full or failing?"): _DEFECT,
    ("sevsnp.images.ext4_attributes", "{} was just made: is the disk full or failing?"): _DEFECT,
    ("sevsnp.images.luks", "is the disk failing?"): _DEFECT,
    ("sevsnp.bench.launch_digest", "one of the two is wrong: report it"): _DEFECT,
    ("sevsnp.vm_config.verity_word", "root hash and salt are 64 lower-case hex digits each"): _DEFECT,
    (
        "sevsnp.owner.key_release",
        "check that the guest waits for its key, and that its ATTEST_PORT is forwarded",
    ): _QUESTION,
    (
        "sevsnp.owner.key_release",
        "check that the guest was made with this CONFIG_DIR's owner certificate, and that no other owner attests it",
    ): _QUESTION,
    (
        "sevsnp.owner.attestation",
        "allow access to AMD's key distribution service; docs/troubleshooting.md names other ways",
    ): _LOOK,
    (
        "sevsnp.owner.attestation",
        "{}: {}",
    ): "a remedy of the verifier's, which has a row of its own, and when it applies",
}

# Strings that name a command, but are not shown to a user as an instruction.
NO_MESSAGE: dict[Row, str] = {
    (
        "sevsnp.containers.bootable",
        "apt-get update && apt-get install -y systemd-sysv dbus openssh-server sudo",
    ): "a part of a hint, which has a row",
    (
        "sevsnp.host.bundle_run",
        r"(\./doitw .*)|\b(PLATFORM|MEMORY|SSH_PORT|ATTEST_PORT|FORWARD)=",
    ): "what is replaced in a bundle's messages",
    (
        "sevsnp.bench.build",
        "  initramfs is not measured: cpio and zstd are not there (apt-get install cpio zstd)",
    ): "a measure that is left out, with what it would need",
    (
        "sevsnp.packages.lock",
        "# Made by `./doitw packages_lock` from the package lists; do not edit.\n",
    ): "a line of packages.lock",
    ("sevsnp.bench.build", "no-op of everything ÷ doit list"): "the name of a measure",
    ("sevsnp.host.bundle_run", r"make it again with: \./doitw \S.*$"): "what is replaced in a bundle's messages",
    ("doitw", "{}"): "the function that says what it is given",
    ("doitw", "installing {}, without which Python makes no virtual environment: {}{}"): "says what it does",
    ("doitw", "going on without a question: there is no terminal"): "says what it does",
    ("doitw", "waiting for another doitw that makes .venv"): "says what it does",
    ("doitw", "apt-get update failed; trying with the lists that are here"): "says what it does",
    (
        "sevsnp.project.dependencies",
        "apt-get update failed; trying with the present package lists",
    ): "says what it does",
    ("sevsnp.pipeline.help", "./doitw {}"): "the title of a task's help",
    ("sevsnp.pipeline.hints", "./doitw"): "the first word of a command, which stands in a hint",
    ("sevsnp.pipeline.hints", "\\./doitw((?: {})+)"): "a pattern of commands, which stand in hints",
    (
        "sevsnp.settings.table",
        "P-384 private key that signs an ID block for the guest (./doitw idblock); empty: it has none",
    ): "what a setting is for",
    ("sevsnp.settings.resolved", "{} {}"): "two hints that have rows of their own, one after the other",
    ("sevsnp.owner.luks", "./doitw attest_luks"): "a command that stands in a hint, which has a row of its own",
    ("sevsnp.owner.luks", "./doitw setup_luks"): "a command that stands in a hint, which has a row of its own",
    ("sevsnp.owner.luks", "./doitw setup_verity"): "a command that stands in a hint, which has a row of its own",
    ("sevsnp.guests.attesting", "./doitw attest_verity"): "a command that stands in a hint, which has a row of its own",
    ("sevsnp.guests.volume_guest", "./doitw {}"): "a command that stands in a hint, which has a row of its own",
    (
        "sevsnp.packages.sources",
        ", or a file that ./doitw pack_sources made",
    ): "the end of what was expected; that such a file is taken, a row of sevsnp.packages.archive shows",
    ("doitw", "LUKS_KEY is empty, expected a key"): "says what was found",
    ("doitw", "LUKS_KEY: found {} bytes, expected at most 4096"): "says what was found",
}
