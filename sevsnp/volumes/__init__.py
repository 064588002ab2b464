# SPDX-License-Identifier: Apache-2.0
"""Volumes that guests have written: user data, outside build/."""
