# SPDX-License-Identifier: Apache-2.0
"""The shipped policies: `strict`, `default` and `legacy-milan`. docs/policy.md has them bit by bit with their sources.

A profile has the form of a policy file, so one reader serves both. The owner must state the fields that strict omits.
"""

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]

# The value comes from the VM config. With VM_CONFIG the config must state it, with VM_CONFIG_IF_ANY it may.
VM_CONFIG, VM_CONFIG_IF_ANY = "vm-config", "vm-config-if-any"


def any_for(reason: str) -> dict[str, str]:
    """An explicit don't-care, with its reason."""
    return {"any": reason}


NO_VM_CONFIG = "there is no VM config that states it, and the policy does not"


def without_vm_config(profile: Document) -> Document:
    """A profile for evidence whose guest has no VM config.

    The policy must state the measurement. VMPL 0 is expected, and what else a VM config states is not compared. A
    minimum TCB stays one that must be stated.
    """
    tcbs = ("reported_tcb", "committed_tcb", "launch_tcb")
    found = {key: any_for(NO_VM_CONFIG) if value == VM_CONFIG and key not in tcbs else value
             for key, value in profile.items() if key != "measurement"}  # fmt: skip
    return {**found, "vmpl": 0} if profile else found


_COMMON: Document = {
    "csp": any_for("no VLEK is accepted, and only a VLEK names a cloud provider"),
    "signer": ["VCEK"],  # one broken chip discloses the VLEK that all chips of the provider use
    "mask_chip_key": [False],
    "guest_policy": VM_CONFIG,
    "guest_abi": any_for("it is part of guest_policy, which is compared as a whole"),
    "provisional_firmware": [False],  # if current is above committed, the host may still roll the firmware back
    "vmpl": VM_CONFIG,
    "guest_svn": VM_CONFIG,
    "family_id": VM_CONFIG,
    "image_id": VM_CONFIG,
    "measurement": VM_CONFIG,
    "host_data": VM_CONFIG,
    "id_key": VM_CONFIG,
    "author_key": VM_CONFIG,
    "report_id": any_for("random for each start of a guest; freshness comes from REPORT_DATA"),
    "migration_agent": ["none"],  # a migration agent could pass on the guest's state; an ID key does not prevent it
}

_TSME = any_for("TSME encrypts memory independently of SEV-SNP, and changes nothing in its protection")

STRICT: Document = {
    **_COMMON,
    # Milan is not in the list: see arXiv 2605.12990 on its endorsement keys. chip_id has no default: interposers and
    # glitching need physical access, so the owner must name the chips whose location he trusts.
    "report_version": {"at_least": 3},  # the first version that names the processor
    "product": ["Genoa", "Turin"],
    "guest_policy_bits": {
        "smt": False,  # AMD-SB-3027 (StackWarp, CVE-2025-29943) and other attacks from the sibling thread
        "migrate_ma": False,
        "debug": False,
        "single_socket": True,  # no traffic between sockets
        "cxl_allow": False,  # no memory on a bus that other devices share
        "mem_aes_256_xts": True,
        "rapl_dis": True,  # no power readings
        "ciphertext_hiding_dram": True,  # AMD-SB-3021: side channels of ciphertext
        "page_swap_disable": True,
    },
    "platform_info": {
        "smt_en": False,
        "tsme_en": _TSME,
        "ecc_en": True,
        "rapl_dis": True,
        "ciphertext_hiding_dram_en": True,
        "alias_check_complete": True,  # AMD-SB-3015, CVE-2024-21944
        "tio_en": False,  # this report does not cover devices inside the trust boundary
    },
    "reported_tcb": VM_CONFIG,
    "committed_tcb": VM_CONFIG,
    "launch_tcb": VM_CONFIG,
    "firmware": {"at_least": "1.55.38"},  # CVE-2024-21944: Genoa's first version with the check for aliased memory
    "launch_mitigations": any_for("this profile does not know AMD's list of bits; name the bits that you need"),
    "revocation": "required",
}

_LATER = "only the profile strict demands it: "

DEFAULT: Document = {
    **_COMMON,
    "report_version": {"at_least": 2},
    "product": ["Genoa", "Turin"],
    "chip_id": any_for("any genuine chip is accepted: a report does not show who has physical access to the chip"),
    "guest_policy_bits": {
        "smt": any_for(_LATER + "most hosts run with SMT"),
        "migrate_ma": False,
        "debug": False,
        "single_socket": any_for(_LATER + "hosts with two sockets refuse it"),
        "cxl_allow": False,
        "mem_aes_256_xts": any_for(_LATER + "older hosts refuse it"),
        "rapl_dis": any_for(_LATER + "older hosts refuse it"),
        "ciphertext_hiding_dram": any_for(_LATER + "needs Linux 6.18 at the host"),
        "page_swap_disable": any_for(_LATER + "older hosts refuse it"),
    },
    "platform_info": {
        "smt_en": any_for(_LATER + "most hosts run with SMT"),
        "tsme_en": _TSME,
        "ecc_en": True,
        "rapl_dis": any_for(_LATER + "a setting of the host's firmware"),
        "ciphertext_hiding_dram_en": any_for(_LATER + "needs Linux 6.18 at the host"),
        "alias_check_complete": True,
        "tio_en": any_for(_LATER + "a guest without such devices is not affected"),
    },
    "reported_tcb": VM_CONFIG_IF_ANY,
    "committed_tcb": VM_CONFIG_IF_ANY,
    "launch_tcb": VM_CONFIG_IF_ANY,
    "firmware": any_for("AMD raises the TCB versions, not this number, for security fixes"),
    "launch_mitigations": any_for("only reports of version 5 have it"),
    "revocation": any_for("checked where a revocation list is available, not demanded"),
}

_OLD = "Milan's firmware before 1.55.22 does not report it"

LEGACY_MILAN: Document = {
    **DEFAULT,
    "product": ["Milan"],
    "platform_info": {**DEFAULT["platform_info"], "ecc_en": any_for(_OLD), "alias_check_complete": any_for(_OLD)},
}

PROFILES: Mapping[str, Document] = {"strict": STRICT, "default": DEFAULT, "legacy-milan": LEGACY_MILAN}
