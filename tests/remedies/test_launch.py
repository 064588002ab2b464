# SPDX-License-Identifier: Apache-2.0
"""Hints about launching: VM configs and their files, ports, memory, QEMU, bundles."""

import dataclasses
import inspect
import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sevsnp.e2e.guest import free_port
from sevsnp.errors import UserError
from sevsnp.host.plain import run_plain
from sevsnp.host.run import run_guest
from sevsnp.host.session import Told as ToldOf
from sevsnp.host.state import Run, held
from sevsnp.images.adopted_modules import kernel_modules
from sevsnp.images.kernel_modules import ModuleTree
from sevsnp.images.luks import make_luks_image
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record
from sevsnp.measurement.id_block import read_identity
from sevsnp.owner import kept
from sevsnp.qemu import snp
from sevsnp.qemu.platforms import Platform
from sevsnp.qemu.process import check_files, check_options, check_version
from sevsnp.qemu.run_options import RunOptions
from sevsnp.qemu.snp_options import check_snp
from sevsnp.settings.values import parse_forwards
from sevsnp.vm_config.config import read_vm_config
from sevsnp.vm_config.fixed import check_fixed
from tests.conftest import Built
from tests.support.replacing import replaced_once
from tests.support.table import Told, failure, remedies
from tests.support.written_volume import KEY, make_source

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")
CONFIG = "build/verity/vm-config-verity.emulated.toml"


def options(checkout: Built, **changes: object) -> RunOptions:
    made = RunOptions(checkout.qemu, 1 << 30, free_port(), free_port(), checkout.build / "run" / "hints")
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@remedies("sevsnp.vm_config.config", "make one with: {}", "./doitw setup_{}")
def test_no_vm_config(told: Told, checkout: Built) -> None:
    path = checkout.project / CONFIG
    path.unlink()
    told.mends(lambda: read_vm_config(path))


@remedies("sevsnp.vm_config.config", "give the file that setup_{} wrote: VM_CONFIG=build/{}/vm-config-{}.toml")
def test_a_bundle_s_launch_file(told: Told, checkout: Built) -> None:
    hint = told.hint(lambda: read_vm_config(checkout.build / "host-bundle" / "launch.toml").require_reference())
    read_vm_config(checkout.project / hint.rpartition("VM_CONFIG=")[2]).require_reference()


@remedies("sevsnp.vm_config.fixed", "make a new VM config: {} {}={}", "make the VM config again: ./doitw setup_{}")
def test_settings_that_a_vm_config_has_fixed(told: Told, checkout: Built) -> None:
    path = checkout.project / CONFIG
    told.mends(lambda: check_fixed(read_vm_config(path), {"GUEST_SVN": 3}))
    told.mends(lambda: check_fixed(read_vm_config(path), {"GUEST_SVN": 0}))
    cmdline = checkout.build / "verity" / "cmdline.emulated"
    replace(cmdline, cmdline.read_bytes().replace(b"sevsnp.writable=", b"sevsnp.nothing="))
    told.mends(lambda: check_fixed(read_vm_config(path), {"WRITABLE": "overlay"}))


def replace(path: Path, data: bytes) -> None:
    """What was built is hard-linked to what other tests use."""
    path.unlink()
    path.write_bytes(data)


@pytest.mark.full
@remedies("sevsnp.qemu.process", "make it again with: {}")
def test_files_of_a_vm_config(told: Told, checkout: Built) -> None:
    def check() -> None:
        check_files(read_vm_config(checkout.project / CONFIG).launch)

    (checkout.build / "verity" / "hash-tree.img").unlink()
    told.mends(check)
    tree = checkout.build / "verity" / "hash-tree.img"
    replace(tree, bytes(tree.stat().st_size))
    told.mends(check)


@remedies("sevsnp.qemu.snp_options", "make the VM config again: {} POLICY=0x30000")
def test_a_guest_policy_that_no_processor_takes(told: Told, checkout: Built) -> None:
    path = checkout.project / "build" / "verity" / "vm-config-verity.toml"
    text = replaced_once(path.read_text(), 'guest_policy = "0x30000"', 'guest_policy = "0x0"')
    replace(path, text.encode())
    told.mends(lambda: check_snp(read_vm_config(path).launch))


def make_id_block(told: Told, checkout: Built) -> Path:
    """Signed VM configs of the verified guest; their directory."""
    made = told.shell("(umask 077; openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out key.pem)")
    assert made.returncode == 0
    assert told.doitw("idblock:verity", "ID_KEY=key.pem", "AUTHOR_KEY=key.pem").returncode == 0
    return checkout.build / "verity" / "idblock"


@pytest.mark.full
@needs_openssl
@remedies("sevsnp.qemu.process", "make it again with: {}")
@remedies("sevsnp.vm_config.config", "make one with: {}", "./doitw idblock:{} ID_KEY=FILE")
def test_an_id_block_that_is_gone(told: Told, checkout: Built) -> None:
    directory = make_id_block(told, checkout)
    config = directory / Path(CONFIG).name
    (directory / "id-block.emulated.base64").unlink()
    told.mends(lambda: check_files(read_vm_config(config).launch), FILE="key.pem")
    config.unlink()
    told.mends(lambda: read_vm_config(config), FILE="key.pem")
    shutil.rmtree(directory)


@pytest.mark.full  # both workflows: it makes an encrypted volume
@needs_openssl
@remedies("sevsnp.measurement.id_block", "make it with: ./doitw idblock ID_KEY=FILE AUTHOR_KEY=FILE")
def test_an_id_block_for_qemu(told: Told, checkout: Built) -> None:
    directory = make_id_block(told, checkout)
    block, auth = directory / "id-block.emulated.base64", directory / "auth-block.emulated.base64"
    block.unlink()
    told.mends(lambda: read_identity(block, auth), FILE="key.pem")
    shutil.rmtree(directory)


def with_busy_port(checkout: Built, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        check_options(options(checkout, **{name: other.getsockname()[1]}))


@remedies("sevsnp.qemu.ports", "take another one: {}")
@remedies("sevsnp.qemu.process", "take less: MEMORY=2G")
def test_ports_and_memory(told: Told, checkout: Built) -> None:
    for name in ("ssh_port", "attest_port"):
        hint = told.hint(partial(with_busy_port, checkout, name))
        setting, _, value = hint.rpartition(" ")[2].partition("=")
        check_options(options(checkout, **{setting.lower(): int(value)}))
    for ports in (((4321, 443), (4322, 80)), ((4322, 80), (4321, 443))):
        hint = told.hint(partial(check_options, options(checkout, ssh_port=4321, forwards=ports)))
        check_options(options(checkout, ssh_port=4321, forwards=parse_forwards(hint.rpartition("=")[2])))
    told.instead(
        lambda: check_options(options(checkout, memory=1 << 60)),
        lambda: check_options(options(checkout, memory=2 << 30)),
    )


@remedies("sevsnp.qemu.ports", "take a port above 1023: {}")
def test_a_port_that_only_root_may_open(told: Told, checkout: Built) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("here every user may open every port")
    hint = told.hint(lambda: as_nobody(lambda: check_options(options(checkout, ssh_port=1))))
    as_nobody(lambda: check_options(options(checkout, ssh_port=int(hint.rpartition("=")[2]))))


def as_nobody(action: Callable[[], object]) -> None:
    """Do it as an ordinary user, in a child where this is root; its UserError is raised here."""
    if os.geteuid():
        action()
        return
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.setgid(65534)
        os.setuid(65534)
        said = b"\0"
        try:
            action()
        except UserError as error:
            said = f"{error.message}\0{error.hint}".encode()
        finally:
            os.write(writer, said)
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        message, _, hint = stream.read().decode().partition("\0")
    if message:
        raise UserError(message, hint)


@pytest.mark.full
@remedies(
    "sevsnp.qemu.process",
    "in a checkout the pinned one is made with: ./doitw packages; a host bundle takes: ./run --qemu FILE",
)
def test_a_missing_qemu(told: Told, checkout: Built) -> None:
    hint = told.hint(lambda: check_version(checkout.qemu.with_name("nonsuch"), "emulated"))
    checkout.qemu.unlink()
    assert told.hint(lambda: check_version(checkout.qemu, "emulated")) == hint
    told.obey(hint.partition(";")[0])
    check_version(checkout.qemu, "emulated")
    bundle = checkout.build / "host-bundle"
    command = hint.rpartition(": ")[2].replace("FILE", f"'{checkout.qemu}'")
    # Both ports the same: what is said once QEMU was found.
    said = failure(lambda: told.shell(f"cd '{bundle}' && {command} --ssh-port 2222 --attest-port 2222"))
    assert "expected two ports" in said


@remedies("sevsnp.host.bundle_run", "install QEMU 10 or newer, or say where it is: ./run --qemu FILE")
def test_a_bundle_without_qemu(told: Told, checkout: Built) -> None:
    bundle = checkout.build / "host-bundle"

    def run(*words: str) -> Callable[[], object]:
        return lambda: told.shell(f"cd '{bundle}' && ./run --ssh-port 2222 --attest-port 2222 {' '.join(words)}")

    hint = told.hint(run("--qemu", "nonsuch"))
    option = hint.partition("./run ")[2].replace("FILE", f"'{checkout.qemu}'")
    assert "expected two ports" in failure(run(option))


@pytest.mark.full
@remedies(
    "sevsnp.host.bundle_run",
    "ask the owner for a bundle that can be emulated too, from: ./doitw {} PLATFORM=auto",
    "copy the bundle here again; the owner packs it with: ./doitw {}",
)
def test_a_bundle_to_make_again(told: Told, checkout: Built) -> None:
    bundle = checkout.build / "host-bundle"

    def run() -> object:
        ports = f"--ssh-port {free_port()} --attest-port {free_port()}"
        # More memory than there is: what is said when all else is well.
        return told.shell(f"cd '{bundle}' && ./run --platform emulated --qemu '{checkout.qemu}' {ports} --memory 4000G")

    assert "take less: --memory 2G" in failure(run)
    assert told.doitw("host_bundle", "PLATFORM=snp").returncode == 0
    told.obey(told.hint(run))
    replace(bundle / "stage-1.efi", b"damaged")
    hint = told.hint(run)
    shutil.rmtree(bundle)
    told.obey(hint)
    assert "take less: --memory 2G" in failure(run)


@pytest.mark.full
@remedies("sevsnp.host.bundle_run", "run another one: ./run --state second")
def test_a_second_guest_of_a_bundle(told: Told, checkout: Built) -> None:
    bundle = checkout.build / "host-bundle"
    words = f"--platform emulated --qemu '{checkout.qemu}' --memory 4000G"
    ports = f"--ssh-port {free_port()} --attest-port {free_port()}"
    with held(bundle / "state", Run("verity", "emulated", "launch.emulated.toml", 1, 2), ""):
        hint = told.hint(lambda: told.shell(f"cd '{bundle}' && ./run {words} {ports}"))
        second = f"cd '{bundle}' && {hint.rpartition(': ')[2]} {words} {ports}"
        assert "take less: --memory 2G" in failure(lambda: told.shell(second))


@pytest.mark.full
@remedies("sevsnp.host.run", "use the production one, or PLATFORM=emulated")
@remedies("sevsnp.qemu.snp", "on SNP hardware use the production VM config, or PLATFORM=emulated")
def test_an_emulated_vm_config_on_snp_hardware(told: Told, checkout: Built) -> None:
    config = read_vm_config(checkout.project / CONFIG)

    def run(platform: str | Platform) -> None:
        run_guest(
            launch=config.launch, options=options(checkout), platform=platform, limit=0.1, source=config.source,
            probe_cache=checkout.build / "run" / "platform.json", told=ToldOf("", "", "x"),
        )  # fmt: skip

    told.hint(lambda: run(Platform("snp", "kvm", "as if this were one")))
    with pytest.raises(UserError, match="the guest did not end in"):  # it was started
        run("emulated")

    def start() -> None:
        with snp.running(config.launch, options(checkout)):
            raise AssertionError("it was started")

    told.hint(start)


@remedies(
    "sevsnp.images.luks",
    "give another one, or none and one is made: ./doitw {} PLATFORM=snp LUKS_KEY_FILE=",
)
def test_a_key_that_an_emulated_guest_has_had(told: Told, tmp_path: Path) -> None:
    source = make_source(tmp_path / "luks")
    luks_key.write_record(tmp_path / "config", source.uuid, Record("given", exposed=True))
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(0o600)

    def make(key_file: str) -> None:
        other = tmp_path / "other"
        given = {"rootfs", "free", "key_file", "config_dir", "data_dir", "platform", "place", "keep", "drop"}
        named: dict[str, Any] = {
            name: other for name in inspect.signature(make_luks_image).parameters if name not in given | {"guest"}
        }
        make_luks_image(
            rootfs=other, free=1, key_file=key_file, config_dir=tmp_path / "config", data_dir=tmp_path / "data",
            platform="snp", place=source.directory / "luks.img", keep="", drop="", **named,
        )  # fmt: skip

    told.hint(lambda: make(str(key)))
    with pytest.raises((UserError, OSError), match="other"):  # past the key, to the root that is not there
        make("")


@remedies("sevsnp.owner.kept", "remove it: rm {}")
def test_evidence_that_was_damaged(told: Told, tmp_path: Path) -> None:
    state = tmp_path / "a state"
    state.mkdir()
    (state / "evidence.json").write_text("{}")
    told.mends(lambda: kept.read(state, emulated=False))


@pytest.mark.full
@remedies(
    "sevsnp.host.plain",
    "make one with: ./doitw create_new_vm",
    "run: ./doitw unpack_kernel",
    "run: ./doitw _firmware",
    "give another one: IMAGE=FILE",
)
def test_missing_files_of_a_plain_guest(told: Told, checkout: Built) -> None:
    image = checkout.build / "guest" / "sevsnptest.qcow2"
    kernel, firmware = checkout.build / "kernel" / "vmlinuz", checkout.build / "firmware" / "OVMF.fd"

    def run(disk: Path = image) -> None:
        run_plain(
            mode="direct", image=disk, own_image=disk == image, cloud=False,
            firmware=firmware, kernel=kernel,
            initrd=checkout.build / "nonsuch", launch={}, platform="emulated", options=options(checkout),
            identity=checkout.keys.user_private, template=checkout.project / "templates" / "ssh_config.j2",
            name="guest",
        )  # fmt: skip

    told.hint(lambda: run(checkout.project / "nonsuch.qcow2"))
    for file in (image, kernel, firmware):
        file.unlink()
        told.obey(told.hint(run))
    with pytest.raises(KeyError, match="PRODUCT"):  # past them all, to the launch that nobody gave
        run()


@pytest.mark.full
@remedies("sevsnp.images.kernel_modules", "run: ./doitw unpack_kernel")
@remedies("sevsnp.images.adopted_modules", "run: ./doitw unpack_kernel")
def test_no_kernel_modules(told: Told, checkout: Built, tmp_path: Path) -> None:
    kernel = checkout.build / "kernel"
    release = (kernel / "version").read_text().strip()
    modules = kernel / "lib" / "modules" / release
    shutil.rmtree(modules)
    hint = told.hint(lambda: ModuleTree(modules))
    told.mends(lambda: kernel_modules(kernel / "version", checkout.tools, tmp_path / "scratch"))
    assert hint.endswith("./doitw unpack_kernel") and ModuleTree(modules)


@pytest.mark.full
@remedies(
    "sevsnp.firmware.gate",
    "use the project's own firmware: do not set FIRMWARE; or say why this one is trusted: FIRMWARE_REASON=TEXT",
    "use the project's own firmware: do not set FIRMWARE",
)
def test_a_firmware_of_the_user_s_own(told: Told, checkout: Built) -> None:
    stock = checkout.build / "snp-release" / "usr/share/ovmf/OVMF.amdsev.fd"
    refused = ("setup_verity", f"FIRMWARE={stock}", "FIRMWARE_REASON=no reason makes up for it")
    told.instead(lambda: told.doitw(*refused), lambda: told.doitw("setup_verity"))
    other = checkout.project / "other.fd"
    data = bytearray(stock.read_bytes())
    data[16] ^= 1
    other.write_bytes(data)
    words = ("setup_verity", "FIRMWARE=other.fd")
    told.instead(lambda: told.doitw(*words), lambda: told.doitw(*words, "FIRMWARE_REASON=for a test"))
    told.instead(lambda: told.doitw(*words), lambda: told.doitw("setup_verity"))
    other.unlink()
