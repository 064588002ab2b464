# SPDX-License-Identifier: Apache-2.0
"""The VM config: one document for the launch of a guest and for its expected measurement."""
