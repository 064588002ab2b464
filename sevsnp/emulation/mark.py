# SPDX-License-Identifier: Apache-2.0
"""The mark in all certificates of a software secure processor."""

# The extension is critical in all three certificates, so a verifier that does not know the emulation refuses them. The
# OID is a random UUID, divided into parts: cryptography 43 cannot read the single 128-bit arc of a 2.25 OID.
EMULATION_OID = "1.2.840.113556.1.8000.2554.54259.16750.14042.20194.47727.2942983.4983174"
