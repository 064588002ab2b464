# SPDX-License-Identifier: Apache-2.0
"""Keys on the owner's machine: where they are, how they are made, and signatures with them."""
