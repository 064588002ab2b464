"""Both workflows end to end, unattended."""
