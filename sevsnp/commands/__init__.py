# SPDX-License-Identifier: Apache-2.0
"""The commands in build/bin, a module each."""
