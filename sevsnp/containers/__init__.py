# SPDX-License-Identifier: Apache-2.0
"""Container images, and other archives that have a root file system inside, as the root of a guest."""
