# SPDX-License-Identifier: Apache-2.0
"""What the untrusted host runs: a guest in the foreground, its state directory and its console."""
