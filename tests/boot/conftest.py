# SPDX-License-Identifier: Apache-2.0
"""The guests that these tests share."""

from tests.boot.luks import luks_guest
from tests.boot.shared import copied, guest, impostor

__all__ = ["copied", "guest", "impostor", "luks_guest"]
