# SPDX-License-Identifier: Apache-2.0
"""Measurements of building, booting and verifying, compared with the bare tools."""

from collections.abc import Iterator
from pathlib import Path

from tasks.graph import Task, command
from tasks.guest import ROOTFS, deny_list, own_rootfs
from tasks.project import (
    APPLIANCE_INITRAMFS,
    BUILD,
    KERNEL,
    QEMU,
    RUN,
    TOOLS,
    VERITY,
    keys,
    own_firmware,
    settings,
    stage_parts,
)

RESULTS = BUILD / "bench"


def task_bench() -> Iterator[Task]:
    """Measure what it costs: bench:build, bench:boot, bench:image, bench:attestation

    Measures builds beside the bare tools, boots, the import of disk images, and verifications. Each has a name of its
    own, as bench:build. The results are in build/bench. It takes a while, and wants a machine that does nothing else.

    Next: README.md says what the numbers mean.
    """
    values, own = settings(), own_rootfs()
    yield {
        "name": "build",
        "doc": "Measure what building costs, beside the bare tools",
        **command(
            "sevsnp.bench.build:bench_build",
            alone=True,
            needs=["setup_verity", "host_bundle", "create_new_vm", "build_tools"],
            results=RESULTS / "build.json",
        ),
    }
    yield {
        "name": "boot",
        "doc": "Measure boots: overlay and copy, small and large /var, with the stage and without, 1 to 4 vCPUs",
        **command(
            "sevsnp.bench.boot:bench_boot",
            launches=True,
            needs=["setup_verity", "_keys", *([] if own else ["_guest_rootfs"])],
            rootfs=own or ROOTFS,
            denied=deny_list(),
            filesystem=values.text("VERITY_FILESYSTEM"),
            tools=TOOLS,
            directory=VERITY,
            qemu=QEMU,
            platform=values.text("PLATFORM"),
            probe_cache=RUN / "platform.json",
            identity=keys().user_private,
            user="user",
            ssh_template=Path("templates/ssh_config.j2"),
            config_template=Path("templates/vm-config.toml.j2"),
            chart_template=Path("templates/bench-boot.svg.j2"),
            results=RESULTS / "boot.json",
            chart=RESULTS / "boot.svg",
            stage_code=stage_parts().get("stage_code"),
            stage_kernel=stage_parts().get("stage_kernel"),
            runs=3,
        ),
    }
    yield {
        "name": "image",
        "doc": "Measure the import of disk images (IMAGE=), beside tar and qemu-img",
        **command(
            "sevsnp.bench.image:bench_image",
            needs=["packages", "unpack_kernel", "_appliance_initramfs"],
            qemu=QEMU,
            kernel=KERNEL / "vmlinuz",
            initrd=APPLIANCE_INITRAMFS,
            probe_cache=RUN / "platform.json",
            tools=TOOLS,
            results=RESULTS / "image.json",
        ),
    }
    yield {
        "name": "attestation",
        "doc": "Measure verifications, and launch digests beside sev-snp-measure",
        **command(
            "sevsnp.bench.attestation:bench_attestation",
            needs=["_firmware"],
            firmware=own_firmware(),
            results=RESULTS / "attestation.json",
        ),
    }
