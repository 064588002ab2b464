# SPDX-License-Identifier: Apache-2.0
"""The guests that these tests share."""

from tests.support.luks_guests import luks_guest
from tests.support.shared_guests import copied, guest, impostor

__all__ = ["copied", "guest", "impostor", "luks_guest"]
