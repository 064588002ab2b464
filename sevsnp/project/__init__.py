# SPDX-License-Identifier: Apache-2.0
"""The project itself: the picture of its pipeline, its tests, and its dependencies on the machine."""
