# SPDX-License-Identifier: Apache-2.0
"""Hints of the exports for other launchers."""

import re
import shlex
from functools import partial

from tests.conftest import Built
from tests.support.table import Told, remedies

CONFIG = "build/verity/vm-config-verity.toml"


@remedies("sevsnp.launchers.guest", "give the one for SEV-SNP: VM_CONFIG={}")
def test_an_emulated_vm_config(told: Told, checkout: Built) -> None:
    export = partial(told.doitw, "export_libvirt", f"VM_CONFIG={CONFIG.replace('.toml', '.emulated.toml')}")
    (word,) = shlex.split(told.hint(export).rpartition(": ")[2])
    assert told.doitw("export_libvirt", word).returncode == 0


@remedies("sevsnp.launchers.guest", "make a guest without one: ./doitw setup_verity DATA_SIZE=0")
def test_a_guest_with_a_data_disk(told: Told, checkout: Built) -> None:
    path = checkout.project / CONFIG
    own = path.with_name("with-data.toml")
    disk = f'[[disk]]\nrole = "data"\npath = "data.img"\nsize = 1\nsha256 = "{"0" * 64}"\n'
    own.write_text(f"{path.read_text()}\n{disk}")
    told.obey(told.hint(partial(told.doitw, "export_libvirt", f"VM_CONFIG={own.relative_to(checkout.project)}")))
    assert told.doitw("export_libvirt").returncode == 0


@remedies("sevsnp.launchers.guest", "make the VM config again with: {}")
def test_a_vm_config_with_another_digest(told: Told, checkout: Built) -> None:
    path = checkout.project / CONFIG
    text = re.sub(r'launch_digest = "[0-9a-f]+"', f'launch_digest = "{"0" * 96}"', path.read_text())
    path.unlink()  # what was built is hard-linked to what other tests use
    path.write_text(text)
    told.mends(partial(told.doitw, "export_libvirt"))


@remedies("sevsnp.launchers.kubevirt", "take another name: NAME=second")
def test_a_name_that_kubernetes_does_not_take(told: Told, checkout: Built) -> None:
    words = ("export_kubevirt", "KUBEVIRT_KERNEL=registry.example/kernel", "KUBEVIRT_FIRMWARE=build/firmware/OVMF.fd")
    word = told.hint(partial(told.doitw, *words, "NAME=Second.One")).rpartition(": ")[2]
    assert told.doitw(*words, word).returncode == 0
