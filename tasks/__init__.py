# SPDX-License-Identifier: Apache-2.0
"""The pipeline's tasks, one module for each stage: their dependencies. The library does the work."""
