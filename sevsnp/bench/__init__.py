# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what a build and a boot cost, as ratios measured in one run."""
