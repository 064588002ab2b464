# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: the costs of builds, boots and verification, as ratios that are measured in one run."""
