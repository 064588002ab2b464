# SPDX-License-Identifier: Apache-2.0
"""Firmware images known by their SHA-256 (lower-case hex digits)."""

# Debian's OVMF.amdsev.fd of ovmf-amdsev 2026.08+ds-2, from which our firmware is made.
STOCK = "3e4fd0b3fe3b2dbe481c3d9e99418a034174f26cbe1f55aa212b0f18c12d2d6f"
OURS = "e60ba17a2a99404876b4e61e9a849de66b34f255aaa31d30f8fba3086bfae55b"
# What our own build from source is (FIRMWARE=source).
OURS_FROM_SOURCE = "db5910ed498eb0be09f1cd80d46d42b867d441e6842e68b3e91a9792a5d4ab77"

# These images start nothing but the kernel, the initrd and the command line whose hashes are in the launch digest.
ACCEPTED = {OURS: "OVMF of openend2e-sevsnp", OURS_FROM_SOURCE: "OVMF of openend2e-sevsnp, built from source"}
# These images also start other code of the host. No setting and no reason makes one of them acceptable.
REFUSED = {
    STOCK: "unchanged AmdSev OVMF (Debian 2026.08+ds-2)",
    "4865fb84220ce73ee037e79fa9047a28e59e6fe7d15defb7e7eefac4fd5b294d": "early OVMF of openend2e-sevsnp",
    "4af274680b80d1ad53947aa4bc1ead8f3205a8d78ab3a3b082e90e9d3d1c02b3": "early OVMF of openend2e-sevsnp",
    "4a001c00d1b0d133f029a28016c9fbd55be55f10a8384aef5b7c5c23ccd09f61": "early OVMF of openend2e-sevsnp",
}
