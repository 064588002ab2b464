# SPDX-License-Identifier: Apache-2.0
"""Run both workflows end to end, unattended."""
