# SPDX-License-Identifier: Apache-2.0
"""The VM config: what is launched and what must be measured, as one document."""
