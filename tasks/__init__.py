# SPDX-License-Identifier: Apache-2.0
"""The pipeline's tasks, one module a stage: what depends on what. The work is done by the library."""
