# SPDX-License-Identifier: Apache-2.0
"""The guest's firmware: what an image contains, how ours is made, and which firmware a guest may start with."""
