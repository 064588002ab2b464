"""From a Linux root filesystem to a verified AMD SEV-SNP guest."""
