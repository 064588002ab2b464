# SPDX-License-Identifier: Apache-2.0
"""What everything else stands on: processes, files, progress, locks, the terminal, YAML."""
