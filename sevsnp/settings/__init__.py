# SPDX-License-Identifier: Apache-2.0
"""The settings: one table, and how their values are read."""
