# SPDX-License-Identifier: Apache-2.0
"""What is given away: a manifest of what was built, its signature, and a list of what it was built from."""
