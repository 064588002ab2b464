# SPDX-License-Identifier: Apache-2.0
"""Keys on the owner's machine: their paths, their creation, and signatures with them."""
