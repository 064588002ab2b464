# SPDX-License-Identifier: Apache-2.0
"""Exports: the guest of a VM config in the words of another launcher, with the same launch digest, or a refusal."""
