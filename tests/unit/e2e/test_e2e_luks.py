# SPDX-License-Identifier: Apache-2.0
"""How the end-to-end run recognises an encrypted root, from device-mapper tables of the kernel in the guest."""

import pytest

from sevsnp.e2e.luks import check_root
from sevsnp.errors import UserError

VOLUME = "0123456789abcdef" * 2
# As a guest has said it.
GOOD = {
    "root": "/dev/mapper/root_guarded;ext4;rw,nodev,relatime,errors=panic",
    "crypt": f"CRYPT-LUKS2-{VOLUME}-root",
    "integrity": f"CRYPT-INTEGRITY-{VOLUME}-root_dif",
    "tag_size": "48",
    "disk": "luks",
    "writable": "yes",
    "system": "running",
}


def test_an_encrypted_root() -> None:
    assert check_root(GOOD) == {"root_encrypted": True, "integrity": True}


@pytest.mark.parametrize("missing", GOOD)
def test_a_missing_value_is_an_error(missing: str) -> None:
    with pytest.raises(UserError, match=f"in the guest, {missing}: found None"):
        check_root({name: value for name, value in GOOD.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("root", "/dev/vda;ext4;rw"),
        ("root", "/dev/mapper/root_guarded;ext4;ro"),
        ("root", "/dev/mapper/root;ext4;rw,nodev,relatime,errors=panic"),
        ("root", "tmpfs;tmpfs;rw"),
        ("crypt", f"CRYPT-PLAIN-{VOLUME}-root"),
        ("crypt", f"CRYPT-VERITY-{VOLUME}-root"),
        ("integrity", "CRYPT-LUKS2-x"),
        ("tag_size", "0"),
        ("tag_size", "16"),
        ("disk", "other"),
        ("system", "degraded"),
    ],
)
def test_another_root_is_an_error(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"in the guest, {name}: found"):
        check_root({**GOOD, name: value})
