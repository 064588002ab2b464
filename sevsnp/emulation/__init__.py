# SPDX-License-Identifier: Apache-2.0
"""The software secure processor and its own trust root. No production code imports this package."""
