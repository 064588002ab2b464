# SPDX-License-Identifier: Apache-2.0
"""Both workflows end to end, unattended."""
