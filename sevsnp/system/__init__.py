# SPDX-License-Identifier: Apache-2.0
"""The base of all other rooms: processes, files, progress, locks, the terminal, YAML."""
