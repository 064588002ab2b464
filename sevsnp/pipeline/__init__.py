# SPDX-License-Identifier: Apache-2.0
"""All that knows doit: its tasks, commands, reporter and database, as this project uses them."""
