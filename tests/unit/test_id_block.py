"""The ID block: the vectors, what the secure processor would refuse, and a launch with one from end to end."""

import base64
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from sevsnp.attestation import idblock_cli
from sevsnp.attestation.appraisal import Evidence, Expected
from sevsnp.attestation.id_block import (
    IdBlock,
    assemble_auth,
    check_launch,
    decode_block,
    encode_key,
    key_digest,
    key_digest_of,
    load_private_key,
    make_auth,
    verify_auth,
)
from sevsnp.emulation.report_encoder import encode_report
from sevsnp.emulation.verify import appraise_emulated, verify_emulated
from sevsnp.errors import UserError
from sevsnp.vm.config import VmConfig, read_vm_config, render_vm_config
from sevsnp.vm.qemu import snp_arguments
from tests.unit.evidence import MEASUREMENT, REPORT_DATA, VECTORS, config, needs_vectors, now, psp, root

ID_KEY, AUTHOR_KEY = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
BLOCK = IdBlock(MEASUREMENT, b"f" * 16, b"i" * 16, 7, 0x30000)


def write_key(path: Path, key: Any, form: PrivateFormat = PrivateFormat.PKCS8, password: str = "") -> Path:
    how = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, form, how))
    return path


@needs_vectors
def test_vectors() -> None:
    folder = VECTORS / "idblock"
    id_key, author_key = (load_private_key(folder / f"test_{name}_key.pem") for name in ("id", "auth"))
    digests = [base64.b64encode(key_digest(key.public_key())).decode() for key in (id_key, author_key)]
    assert digests == [
        "WfssaG36T+9J84M5qndckAUcKNVzg93DuvO160sUlt87DbvcuuX+J2d6ZEggdz/i",
        "7tgRafsMteDsNHlPEo/U4MSkb2fGWhrfqB/LJLzAiMJyNpt//D6ytq9qQoShs2xf",
    ]
    block = base64.b64decode(
        "oU1jg0HlZ0Yo/h4C++3r5eWrT68d1y2JZgaOYVu5nv0T0hSzXCMXFbOOJj3GBZdFAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAAAAA"
        "AAAAAwAAAAAA"
    )
    said = decode_block(block)
    assert said.encode() == block and (said.policy, said.guest_svn) == (0x30000, 0)
    signatures = [(folder / f"test_{name}_sig.bin").read_bytes() for name in ("id", "auth")]
    expected = (folder / "test_auth_block.bin").read_bytes()
    assert assemble_auth(signatures[0], id_key.public_key(), signatures[1], author_key.public_key()) == expected
    assert verify_auth(block, expected).id_key_digest == key_digest(id_key.public_key())


def test_layout() -> None:
    block = BLOCK.encode()
    assert len(block) == 96 and decode_block(block) == BLOCK
    key = encode_key(ID_KEY.public_key())
    x = ID_KEY.public_key().public_numbers().x
    assert len(key) == 0x404 and key[:4] == b"\2\0\0\0" and int.from_bytes(key[4:76], "little") == x
    auth = make_auth(block, ID_KEY, AUTHOR_KEY)
    assert len(auth) == 4096 and auth[576:1604] == key
    assert verify_auth(block, auth).author_key_digest == hashlib.sha384(encode_key(AUTHOR_KEY.public_key())).digest()


def test_what_the_secure_processor_would_refuse() -> None:
    block = BLOCK.encode()
    auth = make_auth(block, ID_KEY, AUTHOR_KEY)
    check_launch(block, auth, MEASUREMENT, 0x30000)  # control
    with pytest.raises(UserError, match="BAD_MEASUREMENT"):
        check_launch(block, auth, bytes(48), 0x30000)
    with pytest.raises(UserError, match="POLICY_FAILURE"):
        check_launch(block, auth, MEASUREMENT, 0x30001)
    other = dataclasses.replace(BLOCK, guest_svn=8).encode()
    with pytest.raises(UserError, match="BAD_SIGNATURE"):
        check_launch(other, auth, MEASUREMENT, 0x30000)
    for place in (0, 4, 8, 64, 300, 576, 700, 1500, 1610, 1664, 2176, 2300, 3300, 4095):
        wrong = bytearray(auth)
        wrong[place] ^= 1
        with pytest.raises(UserError, match="ID authentication block"):
            check_launch(block, bytes(wrong), MEASUREMENT, 0x30000)
    for short in (auth[:-1], b""):
        with pytest.raises(UserError, match="expected 4096"):
            check_launch(block, short, MEASUREMENT, 0x30000)
    with pytest.raises(UserError, match="expected 96"):
        check_launch(block[:-1], auth, MEASUREMENT, 0x30000)
    with pytest.raises(UserError, match="version 2"):
        decode_block(block[:80] + b"\2" + block[81:])


def test_keys(tmp_path: Path) -> None:
    for number, form in enumerate((PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)):
        plain = write_key(tmp_path / f"plain{number}", ID_KEY, form)
        assert key_digest(load_private_key(plain).public_key()) == key_digest(ID_KEY.public_key())
        locked = write_key(tmp_path / f"locked{number}", ID_KEY, form, "secret")
        asked: list[str] = []

        def ask(prompt: str, asked: list[str] = asked) -> str:
            asked.append(prompt)
            return "secret"

        assert load_private_key(locked, ask).private_numbers() == ID_KEY.private_numbers() and len(asked) == 1
        with pytest.raises(UserError, match="passphrase"):
            load_private_key(locked, lambda _: "wrong")
        with pytest.raises(UserError, match="nobody to ask"):
            load_private_key(locked)
    with pytest.raises(UserError, match="P-384"):
        load_private_key(write_key(tmp_path / "p256", ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(UserError, match="elliptic"):
        load_private_key(write_key(tmp_path / "rsa", rsa.generate_private_key(65537, 2048)))
    (tmp_path / "none").write_text("nonsense")
    for path in (tmp_path / "none", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=path.name):
            load_private_key(path)
    assert key_digest_of(write_key(tmp_path / "private.pem", AUTHOR_KEY)) == key_digest(AUTHOR_KEY.public_key())


@pytest.fixture
def signed(tmp_path: Path) -> VmConfig:
    """A VM config on the disk whose guest has an ID block, made by the command."""
    plain = dataclasses.replace(
        config(family_id=b"f" * 16, image_id=b"i" * 16, guest_svn=7), source=tmp_path / "vm.toml"
    )
    plain.source.write_text(render_vm_config(plain))
    keys = [write_key(tmp_path / "id_key.pem", ID_KEY), write_key(tmp_path / "author_key.pem", AUTHOR_KEY)]
    words = ["--vm-definition", str(plain.source), "--id-key-path", str(keys[0]), "--auth-key-path", str(keys[1])]
    assert idblock_cli.main([*words, "--output", str(tmp_path), "--vm-config-output", f"{tmp_path}/id.toml"]) == 0
    assert idblock_cli.main([*words[:-1], words[3]]) == 64  # one key for both
    return read_vm_config(tmp_path / "id.toml")


def test_a_launch_with_an_id_block_from_end_to_end(signed: VmConfig, tmp_path: Path) -> None:
    block, auth = ((tmp_path / name).read_text().strip() for name in (idblock_cli.BLOCK_FILE, idblock_cli.AUTH_FILE))
    assert (base64.b64decode(block), base64.b64decode(auth)) == (signed.launch.id_block, signed.launch.id_auth)
    arguments = " ".join(snp_arguments(signed.launch, 1 << 30, 51, 1, id_block=True))
    assert f"id-block={block},id-auth={auth},author-key-enabled=on" in arguments
    # A probe of the host starts something else: under this block the secure processor would refuse it.
    assert "id-block" not in " ".join(snp_arguments(signed.launch, 1 << 30, 51, 1))
    report = psp().report(REPORT_DATA, launch=signed.launch, measurement=MEASUREMENT)
    one = Evidence(report, psp().certificate_table())
    verdict = verify_emulated(one, Expected.of(signed, REPORT_DATA), now(), root())
    assert verdict.report.id_key_digest == key_digest(ID_KEY.public_key())
    assert (verdict.report.guest_svn, verdict.report.family_id) == (7, b"f" * 16)
    # A guest that was launched without the block, or with another key's, is refused.
    bare = dataclasses.replace(signed.launch, id_block=b"", id_auth=b"")
    without = Evidence(psp().report(REPORT_DATA, launch=bare, measurement=MEASUREMENT), psp().certificate_table())
    found = appraise_emulated(without, Expected.of(signed, REPORT_DATA), now(), root())
    failed = {str(check.name) for check in found.checks if check.outcome == "failed"}
    assert failed == {"id-key-digest", "author-key-digest", "family-id", "image-id", "guest-svn"}
    fields = psp().fields(REPORT_DATA, launch=signed.launch, measurement=MEASUREMENT)
    other = psp().sign(encode_report(dataclasses.replace(fields, id_key_digest=b"x" * 48)))
    found = appraise_emulated(
        dataclasses.replace(one, report=other), Expected.of(signed, REPORT_DATA), now(), root()
    )
    assert str(found.reason) == "id-key-digest"


def test_an_emulated_launch_refuses_what_the_hardware_would(signed: VmConfig) -> None:
    for changes, words in (
        ({"measurement": bytes(48)}, "BAD_MEASUREMENT"),
        ({"launch": dataclasses.replace(signed.launch, guest_policy=0x30001)}, "POLICY_FAILURE"),
    ):
        with pytest.raises(UserError, match=words):
            psp().report(REPORT_DATA, **{"launch": signed.launch, "measurement": MEASUREMENT, **changes})  # type: ignore[arg-type]


def test_trusted_keys_by_file(signed: VmConfig, tmp_path: Path) -> None:
    report = psp().report(REPORT_DATA, launch=signed.launch, measurement=MEASUREMENT)
    one = Evidence(report, psp().certificate_table())
    write_key(tmp_path / "other.pem", ec.generate_private_key(ec.SECP384R1()))
    for names, decision in ((["id_key.pem"], "accepted"), (["other.pem", "id_key.pem"], "accepted"),
                            (["other.pem"], "refused"), (["none"], "refused")):  # fmt: skip
        wanted = dataclasses.replace(signed, policy={"profile": "default", "id_key": names})
        assert appraise_emulated(one, Expected.of(wanted, REPORT_DATA), now(), root()).decision == decision
