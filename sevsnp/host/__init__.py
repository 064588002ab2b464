# SPDX-License-Identifier: Apache-2.0
"""The untrusted host's part: a guest in the foreground, its state directory and its console."""
