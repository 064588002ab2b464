"""The hints that no test obeys, each with the reason: nobody is told to do anything that can be done here."""

from tests.remedies.table import Row

_KNOWN = "the names that are known; which of them was meant only the user can say"
_LOOK = "says where more is to be read"
_HARDWARE = "needs a host with SEV-SNP"
_OTHERS = "somebody else has to make another file; which file is said"
_QUESTION = "asks what the user can look at; which of it is so, no program here can know"
_DEFECT = "a defect of the disk, or of the program: nothing that a user can set right here"

NO_ACTION: dict[Row, str] = {
    ("sevsnp.images.guest_config", "known: {}"): _KNOWN,
    ("sevsnp.packages.lock", "known: {}"): _KNOWN,
    ("sevsnp.packages.sets", "known: {}"): _KNOWN,
    ("sevsnp.settings", "known: {}"): _KNOWN,
    ("sevsnp.attestation.report_input", "give a report: {}"): "the forms of a report that are known",
    ("sevsnp.e2e", "its console is in the serial log"): _LOOK,
    ("sevsnp.e2e_luks", "its console is in the serial log"): _LOOK,
    ("sevsnp.testing", "its report is above"): _LOOK,
    ("sevsnp.vm.plain", "all of it: {}"): _LOOK,
    ("sevsnp.vm.run", "all of it: {}"): _LOOK,
    ("sevsnp.vm.qmp", "look at its messages above"): _LOOK,
    ("sevsnp.key_release", "see the guest's console"): _LOOK,
    ("sevsnp.key_release", "its console says more: build/run/luks/serial.log where it runs here"): _LOOK,
    ("sevsnp.vm.feature_info", "run it on the SNP host itself, not in a guest"): _HARDWARE,
    ("sevsnp.vm.feature_info", "SEV-SNP is off, or the kernel too old: {}"): _HARDWARE,
    ("sevsnp.emulation.psp", "use platform snp, or run the emulation on another machine"): _HARDWARE,
    ("sevsnp.images.disk_format", "ask whoever made it for a qcow2 image"): _OTHERS,
    ("sevsnp.images.disk_format", "ask whoever made it for one that has all of its data in itself"): _OTHERS,
    ("sevsnp.attestation.ovmf", "give an SVSM as QEMU starts it beside an OVMF, not an IGVM file"): _OTHERS,
    ("sevsnp.images.kernel_modules", "build the kernel with CONFIG_MODULE_SIG_ALL=y"): _OTHERS,
    ("sevsnp.attestation.report", "a newer version of this verifier may know it"): _OTHERS,
    ("sevsnp.packages.resolve", "use a mirror whose indices have SHA-256"): _OTHERS,
    ("sevsnp.images.filesystem", "{} was just made: is the disk full or failing?"): _DEFECT,
    ("sevsnp.images.luks", "is the disk failing?"): _DEFECT,
    ("sevsnp.bench.launch_digest", "one of the two is wrong: report it"): _DEFECT,
    ("sevsnp.images.verity", "root hash and salt are 64 lower-case hex digits each"): _DEFECT,
    ("sevsnp.attestation.client", "is the guest up, and its ATTEST_PORT forwarded?"): _QUESTION,
    ("sevsnp.key_release", "does the guest wait for its key, and is its ATTEST_PORT forwarded?"): _QUESTION,
    (
        "sevsnp.key_release",
        "was it made with this CONFIG_DIR's owner certificate, and does nobody else attest it?",
    ): _QUESTION,
    ("sevsnp.owner", "{}: {}"): "a remedy of the verifier's, which has a row of its own, and when it applies",
    (
        "sevsnp.attestation.outcome",
        "if AMD's bulletins name no higher TCB version than this report's",
    ): "goes before a command",
    ("sevsnp.packages.fetch", "{}{}"): "its parts are made of the proxy's settings, each with its name",
}

# Strings that name a command, and are said to nobody as what to do.
NO_MESSAGE: dict[Row, str] = {
    (
        "sevsnp.vm.host",
        r"(\./doitw .*)|\b(PLATFORM|MEMORY|SSH_PORT|ATTEST_PORT)=",
    ): "what is replaced in a bundle's messages",
    (
        "sevsnp.bench.build",
        "  initramfs is not measured: cpio and zstd are not there (apt-get install cpio zstd)",
    ): "a measure that is left out, with what it would need",
    (
        "sevsnp.packages.lock",
        "# Made by `doit packages_lock` from the package lists; do not edit.\n",
    ): "a line of packages.lock",
    ("sevsnp.bench.build", "no-op of everything ÷ doit list"): "the name of a measure",
    ("sevsnp.vm.host", r"make it again with: \./doitw \S.*$"): "what is replaced in a bundle's messages",
    ("doitw", "{}"): "the function that says what it is given",
    ("doitw", "installing {}, without which Python makes no virtual environment: {}{}"): "says what it does",
    ("doitw", "making .venv from requirements.lock with {}"): "says what it does",
    ("doitw", "waiting for another doitw that makes .venv"): "says what it does",
    ("doitw", "apt-get update failed; trying with the lists that are here"): "says what it does",
    ("sevsnp.dependencies", "apt-get update failed; trying with the package lists that are here"): "says what it does",
    ("doitw", "LUKS_KEY is empty, expected a key"): "says what was found",
    ("doitw", "LUKS_KEY: found {} bytes, expected at most 4096"): "says what was found",
}

# No test obeys these yet: each is work that is left. A new hint may not be added here.
NOT_YET: frozenset[Row] = frozenset(
    {
        ("doitw", "found {}, expected Python 3.11 or newer (apt-get install python3)"),
        (
            "doitw",
            "pip could not install requirements.lock (its words are above); run ./doitw again to try again",
        ),
        ("doitw", "that failed; run as root: {}"),
        ("doitw", "this sh has no pipe for LUKS_KEY; use LUKS_KEY_FILE=path"),
        ("doitw", "{} has no ensurepip, and there is no apt-get: install its venv package"),
        ("doitw", "{} is missing and only root can install it: run as root: {}"),
        ("sevsnp.images.luks", "let it go: rm {} — or keep it: move it away together with build/luks"),
        ("sevsnp.images.luks2", "make the image again: ./doitw setup_luks"),
        ("sevsnp.luks_key", "give LUKS_KEY, or a file: LUKS_KEY_FILE=…"),
        ("sevsnp.luks_key", "run it again"),
        ("sevsnp.luks_owner", "LUKS_KEY=… ./doitw attest_luks"),
        ("sevsnp.luks_owner", "make a volume with another key: ./doitw setup_luks"),
        ("sevsnp.luks_owner", "nothing was sent; give the right key"),
        (
            "sevsnp.owner",
            "an emulated guest is attested with its own VM config: VM_CONFIG=….emulated.toml, or PLATFORM=emulated",
        ),
        ("sevsnp.packages.hostapt", "apt is needed: it says where packages come from"),
        ("sevsnp.packages.sources", "run: apt-get install mmdebstrap, or set MIRROR"),
        ("sevsnp.vm.run", "use the production one, or PLATFORM=emulated"),
        ("sevsnp.vm.snp", "on SNP hardware use the production VM config, or PLATFORM=emulated"),
        ("sevsnp.vm.volume", "./doitw setup_luks"),
        ("sevsnp.vm.volume", "make it again with: ./doitw setup_luks"),
        ("sevsnp.vm.volume", "move it away, or remove it with all that the guest wrote there: rm {}"),
    }
)
