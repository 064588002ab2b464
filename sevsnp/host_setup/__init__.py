# SPDX-License-Identifier: Apache-2.0
"""Whether a machine can start SEV-SNP guests, why it cannot, and what software it needs for that."""
