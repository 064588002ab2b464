# SPDX-License-Identifier: Apache-2.0
"""The guest's firmware: read an image, make our own, and decide with which firmware a guest may start."""
