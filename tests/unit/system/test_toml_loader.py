# SPDX-License-Identifier: Apache-2.0
"""TOML is read with limits; a number that Python cannot read or print is an error of the file, not of the program."""

import tomllib
from pathlib import Path

import pytest

from sevsnp.attestation.policy import read_policy
from sevsnp.errors import UserError
from sevsnp.packages.lock import read_lock
from sevsnp.system.toml_loader import loads
from sevsnp.vm_config.config import read_vm_config

LARGEST, SMALLEST = (1 << 63) - 1, -(1 << 63)
TOO_LARGE = {
    "digits": "1" * 5000,
    "hex": "0x" + "f" * 100_000,
    "one more": str(LARGEST + 1),
    "one less": str(SMALLEST - 1),
    "in a list": f"[1, [{{b = {LARGEST + 1}}}]]",
    "digits in a list": f"[1, [{{b = {'1' * 5000}}}]]",
}


def test_integers_of_64_bits_are_read() -> None:
    text = f"a = {LARGEST}\nb = [{SMALLEST}, {{c = 0x{LARGEST:x}}}]\n"
    assert loads(text) == {"a": LARGEST, "b": [SMALLEST, {"c": LARGEST}]}


@pytest.mark.parametrize("value", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_larger_integer_is_refused_by_each_reader(value: str, tmp_path: Path) -> None:
    with pytest.raises(tomllib.TOMLDecodeError, match="expected 64 bits with the sign"):
        loads(f"format = {value}\n")
    file = tmp_path / "file.toml"
    file.write_text(f"format = {value}\n")
    for read in (read_vm_config, read_policy):
        with pytest.raises(UserError, match=r"file\.toml: not a .*: .*expected 64 bits with the sign"):
            read(file)
    file.write_text("format = 1\n")  # control: it is the number
    assert read_policy(file) == {"format": 1}


def test_a_number_of_many_digits_in_the_lock_is_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "packages.lock"
    file.write_text(f"format = {'1' * 5000}\n")
    with pytest.raises(UserError, match=r"packages\.lock: not TOML"):
        read_lock(file)
