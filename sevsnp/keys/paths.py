# SPDX-License-Identifier: Apache-2.0
"""The paths of the user's keys. This is a module of its own because doit loads it for every command."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Keys:
    """Paths of the keys.

    ``user_private`` and ``user_public`` are in OpenSSH format. ``owner_private`` is PKCS#8 PEM. ``owner_certificate``
    is PEM and signed with ``owner_private``.
    """

    user_private: Path
    user_public: Path
    owner_private: Path
    owner_certificate: Path

    @classmethod
    def of(cls, config_dir: Path) -> "Keys":
        return cls(
            user_private=config_dir / "user_ed25519",
            user_public=config_dir / "user_ed25519.pub",
            owner_private=config_dir / "owner_key.pem",
            owner_certificate=config_dir / "owner_certificate.pem",
        )
