# SPDX-License-Identifier: Apache-2.0
"""Compute what a launch measures: from firmware, vCPUs and files to the launch digest and the ID block."""
