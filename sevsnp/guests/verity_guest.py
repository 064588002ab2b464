# SPDX-License-Identifier: Apache-2.0
"""`run_sev_snp_verity`: run the verified guest, with the data disk that its VM config may name."""

from collections.abc import Mapping
from pathlib import Path

from sevsnp.host.run import another_guest, chosen_config, run_workflow
from sevsnp.host.state import check_free
from sevsnp.qemu.run_options import RunOptions
from sevsnp.vm_config.config import read_vm_config
from sevsnp.volumes.data_disk import data_volume


def run_verity(
    *,
    directory: Path,
    vm_config: Path | None,
    disks: Mapping[str, Path],
    asked: Mapping[str, int | str],
    data_dir: Path,
    platform: str,
    options: RunOptions,
    name: str,
) -> None:
    """Run the guest of setup_verity, whose VM configs are in ``directory``, in the foreground.

    Parameters as for :func:`sevsnp.host.run.run_workflow`. What the guest writes to its data disk stays in
    ``data_dir``.
    """
    check_free(options.state, another_guest("run_sev_snp_verity", name))
    vm_config = vm_config or chosen_config(directory, "verity", platform, options)
    with data_volume(read_vm_config(vm_config).launch, data_dir) as volume:
        run_workflow(
            directory=directory,
            workflow="verity",
            vm_config=vm_config,
            disks=disks,
            asked=asked,
            platform=platform,
            options=options,
            name=name,
            volume=volume,
        )
