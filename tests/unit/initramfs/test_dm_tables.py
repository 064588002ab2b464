# SPDX-License-Identifier: Apache-2.0
"""The digest of device-mapper tables: independent of device numbers, different for any other change."""

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "initramfs" / "dm_tables.py"
CRYPT = (
    f"0 614472 crypt capi:authenc(hmac(sha256),xts(aes))-random {'0' * 192} 0 253:0 0 2 "
    "integrity:48:aead sector_size:4096\n"
)
INTEGRITY = "0 614472 integrity 254:16 2048 48 J 7 block_size:4096 journal_sectors:4752 fix_padding\n"


@pytest.fixture(scope="module")
def dm_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dm_tables_here", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_digest_covers_both_tables_without_the_device_numbers(dm_tables: ModuleType) -> None:
    text = CRYPT.replace("253:0", "dev") + INTEGRITY.replace("254:16", "dev")
    assert dm_tables.tables_digest(CRYPT, INTEGRITY) == hashlib.sha256(text.encode()).hexdigest()
    other = dm_tables.tables_digest(CRYPT.replace("253:0", "252:7"), INTEGRITY.replace("254:16", "8:1"))
    assert other == dm_tables.tables_digest(CRYPT, INTEGRITY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hmac(sha256)", "crc32c"), ("xts(aes)", "cipher_null"), ("614472", "614464"), ("integrity:48", "integrity:32"),
        (" sector_size:4096", ""), ("-random", "-plain64"), ("2 integrity", "3 allow_discards integrity"),
        ("253:0 0 2", "253:0 8 2"), (" 0 253:0", " 1 253:0"), ("000 0 253", "001 0 253"),
    ],
)  # fmt: skip
def test_any_changed_word_changes_the_digest(dm_tables: ModuleType, old: str, new: str) -> None:
    assert old in CRYPT
    assert dm_tables.tables_digest(CRYPT.replace(old, new, 1), INTEGRITY) != dm_tables.tables_digest(CRYPT, INTEGRITY)


@pytest.mark.parametrize(("old", "new"), [(" J ", " D "), (" J ", " R "), ("2048", "2056"), ("48 J", "32 J")])
def test_the_integrity_mapping_counts_too(dm_tables: ModuleType, old: str, new: str) -> None:
    assert old in INTEGRITY
    assert dm_tables.tables_digest(CRYPT, INTEGRITY.replace(old, new)) != dm_tables.tables_digest(CRYPT, INTEGRITY)


def test_a_number_within_a_word_is_not_a_device_number(dm_tables: ModuleType) -> None:
    assert dm_tables.canonical("0 8 crypt a:1:2 1:2x x1:2 8:1\n") == "0 8 crypt a:1:2 1:2x x1:2 dev\n"


@pytest.mark.parametrize("table", ["", "\n", CRYPT + CRYPT, f"\n{CRYPT}"])
def test_a_table_with_no_target_or_several_is_refused(dm_tables: ModuleType, table: str) -> None:
    with pytest.raises(ValueError, match="expected one target"):
        dm_tables.canonical(table)
