# SPDX-License-Identifier: Apache-2.0
"""The commands in build/bin; each command is one module."""
