# SPDX-License-Identifier: Apache-2.0
"""From a Linux root filesystem to a verified AMD SEV-SNP guest."""
