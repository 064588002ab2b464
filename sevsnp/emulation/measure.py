# SPDX-License-Identifier: Apache-2.0
"""The launch digest of the memory with which a paused guest will start."""

import io

from sevsnp.measurement.launch_digest import launch_digest


def measure(firmware: bytes, hash_page: bytes, *, vcpus: int, vcpu_model: str, guest_features: int) -> bytes:
    """The launch digest (48 bytes) of a firmware image and a kernel-hashes page (4096 bytes), both read from memory."""
    return launch_digest(
        io.BytesIO(firmware),
        len(firmware),
        hash_page,
        vcpus=vcpus,
        vcpu_model=vcpu_model,
        guest_features=guest_features,
        name="firmware in guest memory",
    )
