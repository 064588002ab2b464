# SPDX-License-Identifier: Apache-2.0
"""Hints about keys: modes, directories, kinds, and the commands that make one key from another."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.attestation import kds_cache
from sevsnp.keys.pairs import ensure_keys
from sevsnp.keys.signature import load_public_key, load_signing_key
from sevsnp.measurement.id_block import key_digest_of
from sevsnp.measurement.signed_config import load_key, sign_configs
from sevsnp.store.cache import Cache
from sevsnp.store.digests import Index
from sevsnp.store.session import Options
from tests.conftest import PROJECT
from tests.support.table import Told, remedies

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")
P384 = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384"


@remedies("sevsnp.keys.pairs", "run: chmod 700 {}", "remove it for a new one, or keep it and run: chmod 600 {}")
def test_modes_of_keys_and_of_their_directory(told: Told, tmp_path: Path) -> None:
    directory = tmp_path / "my keys"
    keys = ensure_keys(directory)
    directory.chmod(0o750)
    told.mends(lambda: ensure_keys(directory))
    for key in (keys.user_private, keys.owner_private):
        before = key.read_bytes()
        key.chmod(0o640)
        told.mends(lambda: ensure_keys(directory))
        assert key.read_bytes() == before


@remedies("sevsnp.keys.pairs", "remove it for a new one, or keep it and run: chmod 600 {}")
def test_a_key_that_others_have_read_is_made_anew(told: Told, tmp_path: Path) -> None:
    key = ensure_keys(tmp_path / "keys").user_private
    key.chmod(0o644)

    def remove() -> None:
        key.unlink()
        key.with_suffix(".pub").unlink()  # that of the old one, which the next message would say

    told.mended(lambda: ensure_keys(tmp_path / "keys"), remove)


@remedies(
    "sevsnp.keys.pairs",
    "move it away, for a new one: mv {} {}",
    "remove it, and it is made again from the private key: rm {}",
)
def test_files_that_are_no_keys(told: Told, tmp_path: Path) -> None:
    directory = tmp_path / "my keys"
    keys = ensure_keys(directory)
    keys.user_public.unlink()
    keys.user_private.write_text("no key")
    told.mends(lambda: ensure_keys(directory))
    assert keys.user_private.with_name(f"{keys.user_private.name}.old").read_text() == "no key"
    keys.owner_certificate.write_bytes(ensure_keys(tmp_path / "others").owner_certificate.read_bytes())
    told.mends(lambda: ensure_keys(directory))


@remedies(
    "sevsnp.keys.pairs",
    "set CONFIG_DIR to a directory of yours",
    "put the key itself there, or set CONFIG_DIR to a directory of yours",
)
def test_a_config_dir_that_cannot_be_used(told: Told, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told.instead(lambda: ensure_keys(tmp_path / "file"), lambda: ensure_keys(tmp_path / "mine"))
    told.instead(lambda: ensure_keys(tmp_path / "file" / "below"), lambda: ensure_keys(tmp_path / "mine"))
    key = ensure_keys(tmp_path / "keys").user_private
    moved = key.rename(tmp_path / "elsewhere")
    key.symlink_to(moved)
    told.instead(lambda: ensure_keys(tmp_path / "keys"), lambda: ensure_keys(tmp_path / "mine"))

    def put_it_there() -> None:
        key.unlink()
        moved.rename(key)

    told.mended(lambda: ensure_keys(tmp_path / "keys"), put_it_there)


@needs_openssl
@remedies("sevsnp.keys.signature", "sign with a new one, or keep it and run: chmod 600 {}")
def test_a_signing_key_that_others_may_read(told: Told, tmp_path: Path) -> None:
    key = tmp_path / "my key.pem"
    told.shell(f"{P384} -out {key.name!r}")
    key.chmod(0o644)
    told.mends(lambda: load_signing_key(key))


@needs_openssl
@remedies("sevsnp.keys.signature", "make it from the private key: openssl pkey -in PRIVATE_KEY -pubout -out {}")
def test_a_file_that_is_no_public_key(told: Told, tmp_path: Path) -> None:
    told.shell(f"{P384} -out key.pem")
    public = tmp_path / "my key.pub.pem"
    public.write_text("no key")
    told.mends(lambda: load_public_key(public), PRIVATE_KEY="key.pem")


@needs_openssl
@remedies(
    "sevsnp.keys.signature", "run it in a terminal, or give a key without a password: openssl pkey -in {} -out {}"
)
def test_an_encrypted_key_without_a_terminal(told: Told, tmp_path: Path) -> None:
    told.shell(f"{P384} -aes256 -pass pass:secret -out key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    # Where nobody can type it, openssl is told the password too.
    hint = told.hint(lambda: without_terminal("load_signing_key", tmp_path / "key.pem"))
    told.obey(f"{hint} -passin pass:secret")
    load_signing_key(tmp_path / "key.plain.pem")


def without_terminal(function: str, path: Path) -> "subprocess.CompletedProcess[str]":
    """What a function of sevsnp.keys.signature says in a process that has no terminal."""
    script = f"import sys, pathlib; from sevsnp.keys.signature import *; {function}(pathlib.Path(sys.argv[1]))"
    return subprocess.run(
        [sys.executable, "-c", script, path],
        cwd=PROJECT,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )


@needs_openssl
@remedies(
    "sevsnp.measurement.id_block",
    "make it from a P-384 private key: openssl pkey -in PRIVATE_KEY -pubout -out PUBLIC_KEY",
)
def test_a_public_key_for_a_policy(told: Told, tmp_path: Path) -> None:
    told.shell(f"{P384} -out key.pem")
    public = tmp_path / "key.pub.pem"
    for spoil in (
        lambda: public.write_text("no key"),
        lambda: told.shell("openssl genpkey -algorithm ed25519 -out k && openssl pkey -in k -pubout -out key.pub.pem"),
        public.unlink,
    ):
        spoil()
        told.mends(lambda: key_digest_of(public), PRIVATE_KEY="key.pem", PUBLIC_KEY=public.name)


@needs_openssl
@remedies(
    "sevsnp.measurement.signed_config",
    "make one: (umask 077; openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out key.pem)",
)
def test_a_key_for_id_blocks(told: Told, tmp_path: Path) -> None:
    def sign(key: Path | None) -> None:
        sign_configs(configs=[], id_key=key, author_key=key, template=tmp_path, output=tmp_path)

    hint = told.hint(lambda: sign(None))
    told.obey(hint)
    key = load_key(tmp_path / "key.pem")
    told.shell("(umask 077; openssl genpkey -algorithm ed25519 -out other.pem)")
    told.instead(lambda: load_key(tmp_path / "other.pem"), lambda: load_key(tmp_path / "key.pem"))
    assert key.curve.name == "secp384r1"


@needs_openssl
@remedies("sevsnp.store.cache", "make the public one: openssl pkey -in {} -pubout -out PUBLIC_KEY")
def test_the_public_key_of_a_shared_cache(told: Told, tmp_path: Path) -> None:
    told.shell("umask 077; openssl genpkey -algorithm ed25519 -out 'my key.pem'")
    index = Index(tmp_path / "index")

    def cache(public: Path | None) -> Cache:
        chosen = Options(
            directory=tmp_path / "cache", limit=1 << 30, signing=tmp_path / "my key.pem", accepted=public, push=True
        )
        return Cache(chosen, index)

    told.obey(told.hint(lambda: cache(None)), PUBLIC_KEY="key.pub.pem")
    cache(tmp_path / "key.pub.pem")


@remedies("sevsnp.attestation.kds_cache", "run: chmod 700 {}")
def test_a_certificate_cache_that_others_can_write_to(told: Told, tmp_path: Path) -> None:
    cache = kds_cache.Cache(tmp_path / "my kds")
    cache.keep("name", b"data")
    cache.directory.chmod(0o777)
    told.mends(lambda: cache.keep("name", b"other"))
    assert os.stat(cache.directory).st_mode & 0o777 == 0o700
