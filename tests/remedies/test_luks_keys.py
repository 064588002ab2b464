# SPDX-License-Identifier: Apache-2.0
"""Hints about disk keys: files, records, and how a key is given."""

import shutil
from pathlib import Path
from uuid import uuid4

from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record, make_key, read_key_file, read_made_key, read_record, write_record
from sevsnp.owner.luks import check_release
from tests.conftest import PROJECT
from tests.support.table import Told, remedies


@remedies(
    "sevsnp.keys.luks_key",
    "run: chmod 600 {}",
    "run: chmod 700 {}",
    "name the file itself",
    "LUKS_KEY_FILE=… names the key file",
)
def test_key_files(told: Told, tmp_path: Path) -> None:
    key = tmp_path / "my key"
    key.write_bytes(b"secret")
    key.chmod(0o640)
    told.mends(lambda: read_key_file(key))
    link = tmp_path / "link"
    link.symlink_to(key)
    told.instead(lambda: read_key_file(link), lambda: read_key_file(key))
    told.instead(lambda: luks_key.given(str(tmp_path / "nonsuch")), lambda: luks_key.given(str(key)))
    config = tmp_path / "my config"
    (config / "volumes").mkdir(parents=True, mode=0o755)
    told.mends(lambda: make_key(config, str(uuid4())))


@remedies("sevsnp.keys.luks_key", "set CONFIG_DIR to where it was: CONFIG_DIR=…")
def test_a_missing_record_of_a_volume(told: Told, tmp_path: Path) -> None:
    uuid = str(uuid4())
    write_record(tmp_path / "where it was", uuid, Record("made"))
    told.instead(lambda: read_record(tmp_path, uuid), lambda: read_record(tmp_path / "where it was", uuid))


@remedies("sevsnp.keys.luks_key", "set CONFIG_DIR to where it was made, or make a new volume: ./doitw setup_luks")
def test_a_key_that_was_made_elsewhere(told: Told, tmp_path: Path) -> None:
    uuid = str(uuid4())
    make_key(tmp_path / "where it was", uuid)
    told.instead(lambda: read_made_key(tmp_path, uuid), lambda: read_made_key(tmp_path / "where it was", uuid))


@remedies("sevsnp.keys.luks_key", "run ./doitw", "run ./doitw, which sets the variable")
def test_an_invalid_file_descriptor_for_the_key(told: Told) -> None:
    script = "import sys\nfrom sevsnp.errors import UserError\nfrom sevsnp.keys.luks_key import given\n"
    script += "try:\n    given('')\nexcept UserError as error:\n    sys.exit(str(error))\n"
    (told.cwd / "give.py").write_text(script)
    python = PROJECT / ".venv" / "bin" / "python"
    give = f"PYTHONPATH='{PROJECT}' '{python if python.exists() else shutil.which('python3')}' give.py"
    for number in ("x", "99"):
        told.hint(lambda number=number: told.shell(f"SEVSNP_LUKS_KEY_FD={number} {give}"))  # type: ignore[misc]
    # What ./doitw does with the variable.
    assert told.shell(f"exec 8<<'K'\nsecret\nK\nSEVSNP_LUKS_KEY_FD=8 {give}").returncode == 0


@remedies("sevsnp.owner.luks", "allow it, if the host may have the key: PLATFORM=emulated")
def test_the_user_s_own_key_for_an_emulated_guest(told: Told) -> None:
    def release(asked: bool) -> None:
        check_release("emulated", Record("given"), emulated_asked=asked)

    told.instead(lambda: release(False), lambda: release(True))


@remedies(
    "sevsnp.owner.luks",
    "if the guest should run on SEV-SNP, its host has started another one — "
    "for emulation make another volume: {} PLATFORM=emulated",
)
def test_the_key_of_a_confidential_guest_for_an_emulated_one(told: Told) -> None:
    def release(record: Record) -> None:
        check_release("emulated", record, emulated_asked=True)

    hint = told.hint(lambda: release(Record("made", sent=True)))
    assert hint.endswith(": ./doitw setup_luks PLATFORM=emulated")
    release(Record("made"))  # that of a new volume
