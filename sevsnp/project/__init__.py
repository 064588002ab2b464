# SPDX-License-Identifier: Apache-2.0
"""The project itself: its picture, its tests, and what it needs of the machine."""
