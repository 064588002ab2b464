# SPDX-License-Identifier: Apache-2.0
"""The manifest's signature: checked by standard tools; accepted keys; and the question for a passphrase."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.keys.signature import fingerprint, is_signed, load_public_key, load_signing_key, sign
from tests.support.on_pty import typed_password

OPENSSL = shutil.which("openssl")
DATA = b'{\n  "type": "something to sign"\n}\n'
SECONDS = 60
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no openssl command here")
pytestmark = needs_openssl

# The openssl command that makes a key of each kind, and the one that checks its signature.
MAKE = {
    "ed25519": "genpkey -algorithm ed25519",
    "p256": "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
    "p384": "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
    "p256-sec1": "ecparam -name prime256v1 -genkey -noout",
    "p384-sec1": "ecparam -name secp384r1 -genkey",  # with its parameters in a block before it
}
CHECK = {
    "ed25519": "pkeyutl -verify -pubin -rawin -inkey {public} -in {data} -sigfile {signature}",
    "p256": "dgst -sha256 -verify {public} -signature {signature} {data}",
    "p384": "dgst -sha384 -verify {public} -signature {signature} {data}",
}
every_kind = pytest.mark.parametrize("kind", MAKE)


def openssl(words: str, check: bool = True, **paths: Path) -> "subprocess.CompletedProcess[bytes]":
    argv = ["openssl", *(word.format(**paths) for word in words.split())]
    return subprocess.run(argv, capture_output=True, check=check, timeout=SECONDS)


def make_key(directory: Path, kind: str = "ed25519", command: str = "") -> Path:
    key = directory / f"{kind}.pem"
    key.touch(0o600)
    key.write_bytes(openssl(command or MAKE[kind]).stdout)
    return key


def public_half(key: Path, password: str = "x") -> Path:
    public = key.with_suffix(".pub.pem")
    openssl(f"pkey -in {{key}} -pubout -out {{public}} -passin pass:{password}", key=key, public=public)
    return public


@every_kind
def test_standard_tools_check_the_signature(tmp_path: Path, kind: str) -> None:
    key = make_key(tmp_path, kind)
    public, data, signature = public_half(key), tmp_path / "data", tmp_path / "data.sig"
    data.write_bytes(DATA)
    signature.write_bytes(sign(load_signing_key(key), DATA))
    command = CHECK[kind.removesuffix("-sec1")]
    assert openssl(command, public=public, data=data, signature=signature).returncode == 0
    data.write_bytes(DATA.replace(b"sign", b"sing"))
    assert openssl(command, False, public=public, data=data, signature=signature).returncode != 0


@every_kind
def test_a_signature_is_valid_for_one_key_and_one_text(tmp_path: Path, kind: str) -> None:
    key = load_signing_key(make_key(tmp_path, kind))
    public = load_public_key(public_half(tmp_path / f"{kind}.pem"))
    signature = sign(key, DATA)
    assert is_signed(public, signature, DATA)
    assert signature == sign(key, DATA)
    assert not is_signed(public, signature, DATA + b" ")
    for wrong in (b"", signature[:-1], signature + b"\0", bytes([signature[0] ^ 1]) + signature[1:], bytes(64)):
        assert not is_signed(public, wrong, DATA)
    for other in MAKE:
        (tmp_path / other).mkdir()
        stranger = load_public_key(public_half(make_key(tmp_path / other, other)))
        assert not is_signed(stranger, signature, DATA)


def test_the_fingerprint_equals_that_of_openssl(tmp_path: Path) -> None:
    public = public_half(make_key(tmp_path))
    der = openssl("pkey -pubin -in {public} -outform DER", public=public).stdout
    wanted = subprocess.run(["openssl", "sha256", "-r"], input=der, capture_output=True, check=True).stdout.split()[0]
    assert fingerprint(load_public_key(public)) == wanted.decode()


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("genrsa -traditional 2048", "RSA"),
        ("genpkey -algorithm ed448", "Ed448"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp256k1", "secp256k1"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521", "secp521r1"),
    ],
)
def test_keys_of_other_kinds_are_refused_by_name(tmp_path: Path, command: str, found: str) -> None:
    key = make_key(tmp_path, "other", command)
    for load, path in ((load_signing_key, key), (load_public_key, public_half(key))):
        with pytest.raises(UserError, match=f"found {found}, expected Ed25519"):
            load(path)


def test_a_damaged_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    secret = key.read_text().splitlines()[1]
    key.write_text(key.read_text().replace(secret, secret[:-3]))
    with pytest.raises(UserError, match="not a private key") as refused:
        load_signing_key(key)
    assert secret[:20] not in str(refused.value)
    with pytest.raises(UserError, match="not a public key"):
        load_public_key(key)
    with pytest.raises(UserError, match="cannot be read"):
        load_public_key(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        load_signing_key(tmp_path / "none")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    key = make_key(tmp_path)
    load_signing_key(key)
    key.chmod(mode)
    with pytest.raises(UserError, match=f"mode {mode:04o}, expected 0600.*\n.*chmod 600"):
        load_signing_key(key)
    link = tmp_path / "link.pem"
    link.symlink_to(key)
    with pytest.raises(UserError, match="expected 0600"):
        load_signing_key(link)
    key.chmod(0o400)
    load_signing_key(link)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UserError, match="expected a file"):
        load_signing_key(tmp_path / "pipe")
    with pytest.raises(UserError, match="expected a file"):
        load_signing_key(tmp_path)


LOAD = """
import sys
from pathlib import Path
from sevsnp.errors import UserError
from sevsnp.keys.signature import load_signing_key, sign
try:
    sys.stdout.write(sign(load_signing_key(Path(sys.argv[1])), b"text").hex())
except UserError as error:
    sys.exit(str(error))
"""
ENCRYPTED = {
    "pkcs8": "genpkey -algorithm ed25519 -aes256 -pass pass:correct",
    "sec1": "ecparam -name prime256v1 -genkey -noout",
}


def encrypted_key(directory: Path, form: str) -> Path:
    key = make_key(directory, form, ENCRYPTED[form])
    if form == "sec1":
        openssl("ec -in {key} -out {key} -aes256 -passout pass:correct", key=key)
    assert b"ENCRYPTED" in key.read_bytes()
    return key


@pytest.mark.parametrize("form", ENCRYPTED)
def test_an_encrypted_key_without_a_terminal_is_refused(tmp_path: Path, form: str) -> None:
    key = encrypted_key(tmp_path, form)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, key],
        input="correct\n",  # a password there is not asked for
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=SECONDS,
    )
    assert done.returncode == 1 and "no terminal to ask for its password" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(("password", "status"), [("correct", 0), ("wrong", 1)])
@pytest.mark.parametrize("form", ENCRYPTED)
def test_the_passphrase_of_an_encrypted_key_is_asked_on_the_terminal(
    tmp_path: Path, form: str, password: str, status: int
) -> None:
    key = encrypted_key(tmp_path, form)
    ended, output = typed_password([sys.executable, "-c", LOAD, str(key)], password)
    assert ended == status, output
    assert password.encode() not in output.replace(b"not its password", b"")
    if status == 0:
        signature = bytes.fromhex(output.split()[-1].decode())
        assert is_signed(load_public_key(public_half(key, "correct")), signature, b"text")
    else:
        assert b"not a private key, or the password does not fit" in output
