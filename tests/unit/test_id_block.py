"""The ID block: its bytes, its keys, what the secure processor refuses, and its way from the VM config to a report."""

import base64
import dataclasses
import hashlib
import os
import pty
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sevsnp.attestation import idblock_cli
from sevsnp.attestation.id_block import (
    IdAuth,
    IdBlock,
    Identity,
    check_identity,
    encode_public_key,
    key_digest,
    key_digest_of,
    make_identity,
    read_identity,
    write_identity,
)
from sevsnp.attestation.report import parse_report
from sevsnp.emulation.service import PspService
from sevsnp.errors import UserError
from sevsnp.vm.config import TEMPLATE, VmConfig, read_vm_config, render_vm_config
from sevsnp.vm.qemu import check_files, snp_arguments
from sevsnp.vm.signed_config import block_of, load_key, sign_configs, with_identity
from tests.unit.evidence import MEASUREMENT, REFERENCE, REPORT_DATA, VECTORS, make_launch, needs_vectors, psp

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")

ID_KEY, AUTHOR_KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
POLICY = 0x30000
BLOCK = IdBlock(MEASUREMENT, b"f" * 16, b"i" * 16, 7, POLICY)
SIGNED = make_identity(BLOCK, ID_KEY, AUTHOR_KEY)
P384 = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384"


def openssl(words: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *words.split()], input=stdin, capture_output=True, check=True).stdout


def write_key(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


# Bytes.

REAL_BLOCK = base64.b64decode(
    "oU1jg0HlZ0Yo/h4C++3r5eWrT68d1y2JZgaOYVu5nv0T0hSzXCMXFbOOJj3GBZdFAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB"
    "AAAAAAAAAAAAAwAAAAAA"
)


@needs_vectors
def test_vectors(tmp_path: Path) -> None:
    folder = VECTORS / "idblock"
    block, auth = IdBlock.decode(REAL_BLOCK), IdAuth.decode((folder / "test_auth_block.bin").read_bytes())
    assert block.encode() == REAL_BLOCK and block.policy == POLICY
    identity = Identity(block, auth)
    check_identity(identity, block.launch_digest, POLICY)
    for path, name, digest in (
        ("test_id_key.pem", "id_key", "WfssaG36T+9J84M5qndckAUcKNVzg93DuvO160sUlt87DbvcuuX+J2d6ZEggdz/i"),
        ("test_auth_key.pem", "author_key", "7tgRafsMteDsNHlPEo/U4MSkb2fGWhrfqB/LJLzAiMJyNpt//D6ytq9qQoShs2xf"),
    ):
        key = load_key(write_key(tmp_path / path, (folder / path).read_bytes()))
        assert encode_public_key(key.public_key()) == getattr(auth, name)
        assert getattr(identity, f"{name}_digest") == key_digest(key.public_key()) == base64.b64decode(digest)
    assert auth.block_signature == (folder / "test_id_sig.bin").read_bytes()
    assert auth.id_key_signature == (folder / "test_auth_sig.bin").read_bytes()
    assert auth.encode() == (folder / "test_auth_block.bin").read_bytes()


def test_layout() -> None:
    block, auth = SIGNED.block.encode(), SIGNED.auth.encode()
    assert (len(block), len(auth)) == (96, 4096)
    assert block[:48] == MEASUREMENT and block[48:64] == b"f" * 16 and block[64:80] == b"i" * 16
    assert [int.from_bytes(block[at:end], "little") for at, end in ((80, 84), (84, 88), (88, 96))] == [1, 7, POLICY]
    assert [int.from_bytes(auth[at : at + 4], "little") for at in (0, 4, 0x240, 0x880)] == [1, 1, 2, 2]
    x = ID_KEY.public_key().public_numbers().x
    assert auth[0x244:0x28C] == x.to_bytes(72, "little")
    zeros = ((0x08, 0x40), (0xD0, 0x240), (0x2D4, 0x680), (0x710, 0x880), (0x914, 0x1000))
    assert not any(any(auth[start:end]) for start, end in zeros)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert IdBlock.decode(SIGNED.block.encode()) == SIGNED.block and IdAuth.decode(SIGNED.auth.encode()) == SIGNED.auth
    paths = tmp_path / "block", tmp_path / "auth"
    write_identity(SIGNED, *paths)
    assert read_identity(*paths) == SIGNED
    assert all(path.read_text().count("\n") == 1 for path in paths)


def test_equal_to_the_other_implementation(tmp_path: Path) -> None:
    theirs = pytest.importorskip("sevsnpmeasure.id_block", reason="sev-snp-measure is not installed")
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    paths = []
    for name, key in (("id", ID_KEY), ("author", AUTHOR_KEY)):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text = theirs.snp_calc_id_block(MEASUREMENT, *map(str, paths))
    block, auth = (base64.b64decode(part.split("=", 1)[1]) for part in text.splitlines()[0].split(","))
    # It can neither say an SVN nor the ids, and its nonces are its own.
    mine = make_identity(IdBlock(MEASUREMENT, bytes(16), bytes(16), 0, POLICY), ID_KEY, AUTHOR_KEY)
    assert mine.block.encode() == block
    found = Identity(IdBlock.decode(block), IdAuth.decode(auth))
    assert (found.auth.id_key, found.auth.author_key) == (mine.auth.id_key, mine.auth.author_key)
    assert base64.b64encode(mine.id_key_digest).decode() in text
    assert base64.b64encode(mine.author_key_digest).decode() in text
    for one in (found, mine):
        check_identity(one, MEASUREMENT, POLICY)


def test_the_same_input_gives_the_same_bytes() -> None:
    assert make_identity(BLOCK, ID_KEY, AUTHOR_KEY) == SIGNED
    assert make_identity(BLOCK, OTHER_KEY, AUTHOR_KEY) != SIGNED


def test_lengths_and_reserved_bytes() -> None:
    block, auth = SIGNED.block.encode(), SIGNED.auth.encode()
    for wrong in (b"", block[:-1], block + b"\0", block[:80] + b"\2" + block[81:]):
        with pytest.raises(UserError, match="ID block: found"):
            IdBlock.decode(wrong)
    for wrong in (b"", auth[:-1], auth + b"\0"):
        with pytest.raises(UserError, match="found"):
            IdAuth.decode(wrong)
    for at in (0, 1, 4, 8, 0x3F, 0x644, 0x67F, 0xC84, 0xFFF):
        with pytest.raises(UserError, match="ID authentication block: algorithms"):
            IdAuth.decode(auth[:at] + bytes((auth[at] ^ 4,)) + auth[at + 1 :])
    with pytest.raises(ValueError, match="family_id: 15 bytes"):
        dataclasses.replace(BLOCK, family_id=bytes(15))


@pytest.mark.parametrize("text", [b"", b"AAAA", b"%" * 128, b"A" * 200, b"\xff" * 128])
def test_files_that_are_no_id_block(tmp_path: Path, text: bytes) -> None:
    paths = tmp_path / "block", tmp_path / "auth"
    write_identity(SIGNED, *paths)
    read_identity(*paths)  # control
    paths[0].write_bytes(text)
    with pytest.raises(UserError, match=r"block: found other than 96 bytes in base64"):
        read_identity(*paths)
    paths[0].unlink()
    with pytest.raises(UserError, match=r"block: cannot be read"):
        read_identity(*paths)


# What the secure processor checks.


def test_every_bit_of_the_block_is_signed() -> None:
    check_identity(SIGNED, MEASUREMENT, POLICY)
    raw = SIGNED.block.encode()
    for bit in range(8 * len(raw)):
        if 640 <= bit < 672:
            continue  # the version, which is refused when it is read
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        one = IdBlock.decode(bytes(changed))
        with pytest.raises(UserError, match=r"BAD_SIGNATURE \(0xa\)"):
            check_identity(Identity(one, SIGNED.auth), one.launch_digest, one.policy)


def changed_auth(**changes: bytes) -> Identity:
    return Identity(BLOCK, dataclasses.replace(SIGNED.auth, **changes))


STRANGER = make_identity(BLOCK, OTHER_KEY, AUTHOR_KEY).auth
# A number that is no point of the curve, and a point with bytes after it that nobody reads.
NO_POINT = SIGNED.auth.id_key[:4] + bytes(71) + b"\1" + SIGNED.auth.id_key[76:]
TRAILING = SIGNED.auth.id_key[:-1] + b"\1"


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (changed_auth(id_key=STRANGER.id_key), "ID block is not signed"),
        (changed_auth(id_key=STRANGER.id_key, block_signature=STRANGER.block_signature), "ID key is not signed"),
        (changed_auth(block_signature=bytes(512)), "ID block is not signed"),
        (changed_auth(id_key_signature=bytes(512)), "ID key is not signed"),
        (changed_auth(author_key=SIGNED.auth.id_key), "ID key is not signed"),
        (changed_auth(id_key=NO_POINT), "ID block is not signed"),
        (changed_auth(id_key=TRAILING), "ID block is not signed"),
        (changed_auth(block_signature=SIGNED.auth.block_signature[:-1] + b"\1"), "ID block is not signed"),
    ],
)
def test_keys_and_signatures_that_do_not_belong_together(identity: Identity, words: str) -> None:
    check_identity(Identity(BLOCK, SIGNED.auth), MEASUREMENT, POLICY)  # control
    with pytest.raises(UserError, match=rf"BAD_SIGNATURE \(0xa\): the {words}"):
        check_identity(identity, MEASUREMENT, POLICY)


def test_another_guest_and_another_policy() -> None:
    check_identity(SIGNED, MEASUREMENT, POLICY)  # control
    with pytest.raises(UserError, match=r"BAD_MEASUREMENT \(0xb\): the guest measures as 0101"):
        check_identity(SIGNED, b"\1" * 48, POLICY)
    with pytest.raises(UserError, match=r"POLICY_FAILURE \(0x7\): the guest policy is 0xb0000, .* for 0x30000"):
        check_identity(SIGNED, MEASUREMENT, 0xB0000)


def test_without_an_author() -> None:
    alone = make_identity(BLOCK, ID_KEY, None)
    check_identity(alone, MEASUREMENT, POLICY)
    assert not alone.auth.has_author and alone.author_key_digest == bytes(48)
    assert alone.auth.encode()[4:8] == bytes(4) and not any(alone.auth.encode()[0x680:])
    assert alone.id_key_digest == SIGNED.id_key_digest == hashlib.sha384(SIGNED.auth.id_key).digest()
    assert IdAuth.decode(alone.auth.encode()) == alone.auth


# Keys.


@needs_openssl
@pytest.mark.parametrize("make", [P384, "ecparam -name secp384r1 -genkey", "ecparam -name secp384r1 -genkey -noout"])
def test_forms_of_keys(tmp_path: Path, make: str) -> None:
    key = write_key(tmp_path / "key.pem", openssl(make))
    public = tmp_path / "key.pub.pem"
    public.write_bytes(openssl(f"pkey -pubout -in {key}"))
    assert key_digest_of(public) == key_digest(load_key(key).public_key())
    check_identity(make_identity(BLOCK, load_key(key), load_key(key)), MEASUREMENT, POLICY)


@needs_openssl
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (P384.replace("P-384", "P-256"), "found secp256r1"),
        ("genpkey -algorithm ed25519", "found a key of another kind"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521", "found secp521r1"),
        ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "found (RSA|a key of another kind)"),
    ],
)
def test_keys_of_another_kind(tmp_path: Path, make: str, words: str) -> None:
    key = write_key(tmp_path / "key.pem", openssl(make))
    with pytest.raises(UserError, match=words):
        load_key(key)
    public = tmp_path / "key.pub.pem"
    public.write_bytes(openssl(f"pkey -pubout -in {key}"))
    with pytest.raises(UserError, match=words):
        key_digest_of(public)


@needs_openssl
def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = write_key(tmp_path / "key.pem", openssl(P384))
    load_key(key)  # control
    key.chmod(0o644)
    with pytest.raises(UserError, match="expected 0600"):
        load_key(key)


# From the VM config to a report.


@pytest.fixture
def config(tmp_path: Path) -> VmConfig:
    reference = dataclasses.replace(REFERENCE, guest_svn=7, family_id=b"f" * 16, image_id=b"i" * 16)
    made = VmConfig(tmp_path / "vm-config-verity.emulated.toml", make_launch(tmp_path), reference)
    made.source.write_text(render_vm_config(made))
    return made


def test_the_block_is_the_vm_configs(config: VmConfig) -> None:
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


def test_qemu_gets_both_or_neither(config: VmConfig, tmp_path: Path) -> None:
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


def test_reports_say_who_signed(config: VmConfig) -> None:
    def report(identity: Identity | None) -> tuple[object, ...]:
        raw = psp().report(REPORT_DATA, launch=config.launch, measurement=MEASUREMENT, identity=identity)
        one = parse_report(raw, "Genoa")
        return (one.id_key_digest, one.author_key_digest, one.author_key, one.family_id, one.image_id, one.guest_svn)

    assert report(SIGNED) == (SIGNED.id_key_digest, SIGNED.author_key_digest, True, b"f" * 16, b"i" * 16, 7)
    alone = make_identity(BLOCK, ID_KEY, None)
    assert report(alone) == (SIGNED.id_key_digest, bytes(48), False, b"f" * 16, b"i" * 16, 7)
    assert report(None) == (bytes(48), bytes(48), False, bytes(16), bytes(16), 0)


def test_the_service_hands_it_on(config: VmConfig, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "psp"))
        listener.listen()
        with PspService(psp(), config.launch, MEASUREMENT, tmp_path / "psp", SIGNED):
            guest, _ = listener.accept()
            with guest:
                guest.settimeout(10)
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
    for missing in ({"id_key": None, "author_key": keys[1]}, {"id_key": keys[0], "author_key": None}):
        with pytest.raises(UserError, match=r"(ID|AUTHOR)_KEY: not set"):
            sign_configs(configs=paths, template=TEMPLATE, output=output, **missing)


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
        idblock_cli.main([*words, *both[:2]])
    assert caught.value.code == 64


def test_an_encrypted_key_asks_on_the_terminal(config: VmConfig, keys: tuple[Path, Path], tmp_path: Path) -> None:
    secret = write_key(tmp_path / "secret.pem", openssl("ec -aes256 -passout pass:correct", keys[0].read_bytes()))
    words = ["--vm-definition", str(config.source), "--output", str(tmp_path), "--auth-key-path", str(keys[1])]
    argv = [sys.executable, "-m", "sevsnp.attestation.idblock_cli", *words, "--id-key-path", str(secret)]
    done = subprocess.run(argv, capture_output=True, start_new_session=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 64 and b"no terminal to ask" in done.stderr
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(argv[0], argv)
    output = b""
    try:
        while b"Password of" not in output:
            output += os.read(terminal, 1024)
        os.write(terminal, b"correct\n")
        while piece := os.read(terminal, 1024):
            output += piece
    except OSError:  # the end of a terminal
        pass
    finally:
        os.close(terminal)
        _, ended = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended) == 0, output
    assert b"correct" not in output
    found = read_identity(tmp_path / "id-block.base64", tmp_path / "auth-block.base64")
    assert found.id_key_digest == key_digest(load_key(keys[0]).public_key())
