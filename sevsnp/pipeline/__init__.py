# SPDX-License-Identifier: Apache-2.0
"""The project's adaptation of doit: its tasks, commands, reporter and database."""
