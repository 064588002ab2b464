# SPDX-License-Identifier: Apache-2.0
"""The registries that these tests share."""

from tests.support.registry_server import locked_registry, own_registry, registry, registry_program

__all__ = ["locked_registry", "own_registry", "registry", "registry_program"]
