# SPDX-License-Identifier: Apache-2.0
"""An ID block from the VM config to a launch and a report, and the commands that sign it."""

import base64
import dataclasses
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.attestation.report import parse_report
from sevsnp.commands import idblock_generator as idblock_cli
from sevsnp.emulation.service import PspService
from sevsnp.errors import UserError
from sevsnp.measurement.id_block import Identity, check_identity, key_digest, make_identity, read_identity
from sevsnp.measurement.signed_config import block_of, load_key, sign_configs, with_identity
from sevsnp.qemu.process import check_files
from sevsnp.qemu.snp_options import snp_arguments
from sevsnp.vm_config.config import TEMPLATE, VmConfig, read_vm_config, render_vm_config
from tests.support.evidence import MEASUREMENT, REFERENCE, REPORT_DATA, make_launch, psp
from tests.support.on_pty import typed_password
from tests.support.waiting import NET
from tests.unit.measurement.test_id_block import BLOCK, ID_KEY, P384, POLICY, SIGNED, openssl, write_key


@pytest.fixture
def config(tmp_path: Path) -> VmConfig:
    reference = dataclasses.replace(REFERENCE, guest_svn=7, family_id=b"f" * 16, image_id=b"i" * 16)
    made = VmConfig(tmp_path / "vm-config-verity.emulated.toml", make_launch(tmp_path), reference)
    made.source.write_text(render_vm_config(made))
    return made


def test_the_id_block_has_the_values_of_the_vm_config(config: VmConfig) -> None:
    assert block_of(config) == BLOCK
    with pytest.raises(UserError, match=r"no \[reference\]"):
        block_of(dataclasses.replace(config, reference=None))


def test_a_vm_config_with_an_id_block(config: VmConfig, tmp_path: Path) -> None:
    output = tmp_path / "idblock"
    output.mkdir()
    signed = with_identity(config, SIGNED, output)
    signed.source.write_text(render_vm_config(signed))
    found = read_vm_config(output / config.source.name)
    assert found.launch == dataclasses.replace(config.launch, id_block=signed.launch.id_block,
                                               id_auth=signed.launch.id_auth,
                                               disks=found.launch.disks)  # fmt: skip
    assert found.require_reference().id_key_digest == SIGNED.id_key_digest
    assert found.require_reference().author_key_digest == SIGNED.author_key_digest
    launch = dataclasses.replace(found.launch, disks=())
    check_files(launch)
    assert launch.id_auth
    launch.id_auth.path.write_text("AAAA")
    with pytest.raises(UserError, match=r"auth-block.emulated.base64: found SHA-256 .* \(id_auth\)"):
        check_files(launch)
    text = signed.source.read_text()
    line = next(line for line in text.splitlines() if line.startswith("id_auth"))
    signed.source.write_text(text.replace(line, ""))
    with pytest.raises(UserError, match="id_block and id_auth: found 'one of them'"):
        read_vm_config(signed.source)


def test_qemu_gets_the_id_block_with_its_authentication_or_neither(config: VmConfig, tmp_path: Path) -> None:
    assert "id-block" not in " ".join(snp_arguments(config.launch, 1 << 30, 51, 1))
    for identity, enabled in ((SIGNED, "on"), (make_identity(BLOCK, ID_KEY, None), "off")):
        launch = with_identity(config, identity, tmp_path).launch
        said = snp_arguments(launch, 1 << 30, 51, 1)[-1]
        properties = dict(part.split("=", 1) for part in said.split(",")[1:])
        assert base64.b64decode(properties["id-block"]) == BLOCK.encode()
        assert base64.b64decode(properties["id-auth"]) == identity.auth.encode()
        assert properties["author-key-enabled"] == enabled


def test_a_launch_with_another_guests_id_block_is_refused(config: VmConfig, tmp_path: Path) -> None:
    launch = with_identity(config, SIGNED, tmp_path).launch
    assert psp().finish_launch(launch, MEASUREMENT) == SIGNED
    assert psp().finish_launch(config.launch, b"\1" * 48) is None  # control: without one, whatever is in memory starts
    with pytest.raises(UserError, match="BAD_MEASUREMENT"):
        psp().finish_launch(launch, b"\1" * 48)
    with pytest.raises(UserError, match="POLICY_FAILURE"):
        psp().finish_launch(dataclasses.replace(launch, guest_policy=0x20000), MEASUREMENT)


def test_reports_name_the_keys_that_signed_the_id_block(config: VmConfig) -> None:
    def report(identity: Identity | None) -> tuple[object, ...]:
        raw = psp().report(REPORT_DATA, launch=config.launch, measurement=MEASUREMENT, identity=identity)
        one = parse_report(raw, "Genoa")
        return (one.id_key_digest, one.author_key_digest, one.author_key, one.family_id, one.image_id, one.guest_svn)

    assert report(SIGNED) == (SIGNED.id_key_digest, SIGNED.author_key_digest, True, b"f" * 16, b"i" * 16, 7)
    alone = make_identity(BLOCK, ID_KEY, None)
    assert report(alone) == (SIGNED.id_key_digest, bytes(48), False, b"f" * 16, b"i" * 16, 7)
    assert report(None) == (bytes(48), bytes(48), False, bytes(16), bytes(16), 0)


def test_the_emulation_service_puts_the_id_block_into_reports(config: VmConfig, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "psp"))
        listener.listen()
        with PspService(psp(), config.launch, MEASUREMENT, tmp_path / "psp", SIGNED):
            guest, _ = listener.accept()
            with guest:
                guest.settimeout(NET)
                guest.sendall(REPORT_DATA)
                answer = b""
                while b"}" not in answer:
                    answer += guest.recv(65536)
    text = answer.split(b'"report": "')[1].split(b'"')[0]
    assert parse_report(base64.b64decode(text), "Genoa").id_key_digest == SIGNED.id_key_digest


# Commands.


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here")
    first, second = (write_key(tmp_path / f"{name}.pem", openssl(P384)) for name in ("id", "author"))
    return first, second


def test_sign_configs(config: VmConfig, keys: tuple[Path, Path], tmp_path: Path) -> None:
    production = dataclasses.replace(
        config, source=tmp_path / "vm-config-verity.toml", launch=dataclasses.replace(config.launch, platform="snp")
    )
    production.source.write_text(render_vm_config(production))
    output = tmp_path / "idblock"
    paths = [production.source, config.source]
    for _ in range(2):  # a second time over what is there
        sign_configs(configs=paths, id_key=keys[0], author_key=keys[1], template=TEMPLATE, output=output)
    made = {path.name for path in output.iterdir()}
    kinds = [f"{kind}-block{suffix}.base64" for kind in ("id", "auth") for suffix in ("", ".emulated")]
    assert made == {*kinds, *(path.name for path in paths)}
    for path in paths:
        launch = read_vm_config(output / path.name).launch
        assert launch.id_block and launch.id_auth
        check_identity(read_identity(launch.id_block.path, launch.id_auth.path), MEASUREMENT, launch.guest_policy)
    with pytest.raises(UserError, match=r"ID_KEY: not set"):
        sign_configs(configs=paths, id_key=None, author_key=keys[1], template=TEMPLATE, output=output)


def test_sign_configs_without_an_author(
    config: VmConfig, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "idblock"
    sign_configs(configs=[config.source], id_key=keys[0], author_key=None, template=TEMPLATE, output=output)
    assert "author key none" in capsys.readouterr().out
    made = read_vm_config(output / config.source.name)
    launch = made.launch
    assert launch.id_block and launch.id_auth
    identity = read_identity(launch.id_block.path, launch.id_auth.path)
    check_identity(identity, MEASUREMENT, launch.guest_policy)
    assert not identity.auth.has_author and made.require_reference().author_key_digest == bytes(48)
    assert made.require_reference().id_key_digest == identity.id_key_digest != bytes(48)


def test_the_command(
    config: VmConfig, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    words = ["--vm-definition", str(config.source), "--output", str(output)]
    both = ["--id-key-path", str(keys[0]), "--auth-key-path", str(keys[1])]
    assert idblock_cli.main([*words, *both]) == 0
    identity = read_identity(output / "id-block.base64", output / "auth-block.base64")
    check_identity(identity, MEASUREMENT, POLICY)
    said = capsys.readouterr().out
    assert f'id_key_digest = "{identity.id_key_digest.hex()}"' in said
    assert f'author_key_digest = "{identity.author_key_digest.hex()}"' in said
    for wrong in (
        [*words, *both[:3], "/nowhere"],
        ["--vm-definition", "/nowhere", *both],
        [*words[:2], "--output", "/nowhere", *both],
    ):
        assert idblock_cli.main(wrong) == 64
        assert "/nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        idblock_cli.main([*words, *both[2:]])
    assert caught.value.code == 64
    capsys.readouterr()
    assert idblock_cli.main([*words, *both[:2]]) == 0  # without an author
    assert f'author_key_digest = "{"0" * 96}"' in capsys.readouterr().out
    assert not read_identity(output / "id-block.base64", output / "auth-block.base64").auth.has_author


def test_the_passphrase_of_an_encrypted_key_is_asked_on_the_terminal(
    config: VmConfig, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    secret = write_key(tmp_path / "secret.pem", openssl("ec -aes256 -passout pass:correct", keys[0].read_bytes()))
    words = ["--vm-definition", str(config.source), "--output", str(tmp_path), "--auth-key-path", str(keys[1])]
    argv = [sys.executable, "-m", "sevsnp.commands.idblock_generator", *words, "--id-key-path", str(secret)]
    done = subprocess.run(argv, capture_output=True, start_new_session=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 64 and b"no terminal to ask" in done.stderr
    ended, output = typed_password(argv, "correct")
    assert ended == 0, output
    assert b"correct" not in output
    found = read_identity(tmp_path / "id-block.base64", tmp_path / "auth-block.base64")
    assert found.id_key_digest == key_digest(load_key(keys[0]).public_key())
