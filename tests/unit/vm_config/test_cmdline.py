# SPDX-License-Identifier: Apache-2.0
"""The one function that makes command lines: words that would be cut off, doubled, quoted or dangerous are refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevsnp.errors import UserError
from sevsnp.vm_config.cmdline import (
    FIRMWARE_PREFIX,
    MAX_LENGTH,
    build_cmdline,
    hardening_words,
    luks_words,
    verity_words,
)
from tests.support.texts import UNICODE

PROJECT = Path(__file__).resolve().parents[3]
SIZES = {"etc": 1, "home": 2, "var": 3, "tmp": 4}


def test_words_are_joined_by_one_blank() -> None:
    assert build_cmdline(["a", "b=1", "c=x,y:z"]) == "a b=1 c=x,y:z"
    assert build_cmdline([]) == ""


def test_the_longest_line_the_kernel_takes_whole() -> None:
    assert MAX_LENGTH + len(FIRMWARE_PREFIX) == 2047
    longest = "a=" + "x" * (MAX_LENGTH - 4) + " b"
    assert build_cmdline(longest.split(" ")) == longest
    with pytest.raises(UserError, match="found 2034 bytes, expected at most 2033"):
        build_cmdline((longest + "b").split(" "))


@pytest.mark.parametrize(
    ("words", "name"),
    [(["a", "a"], "a"), (["a=1", "b", "a=2"], "a"), (["acpi=off", "acpi"], "acpi"), (["x.y=1", "x.y=1"], "x.y")],
)
def test_a_duplicate_word_is_refused_by_name(words: list[str], name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: given twice"):
        build_cmdline(words)


@pytest.mark.parametrize(
    "word",
    [
        "", " ", "a b", "a\tb", "a\n", "\na", "a\0", "a\x7f", "a\x1b", '"a"', 'a="b', "a='b", "a\\b", "\u00e4",
        "a=\u202e",
    ],
)  # fmt: skip
def test_a_word_that_the_kernel_would_read_differently_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="expected printable ASCII"):
        build_cmdline(["quiet", word])


@pytest.mark.parametrize(
    "word",
    [
        "init=/bin/sh", "rdinit=/bin/sh", "break", "break=mount", "single", "emergency", "rescue", "rd.break",
        "rd.shell=1", "systemd.debug_shell", "systemd.debug-shell=1", "systemd.unit=rescue.target",
        "systemd.set_credential=a:b", "systemd.set_credential_binary=a:b", "systemd.mask=ssh.service",
        "systemd.wants=debug-shell.service", "systemd.run=/bin/sh", "systemd.setenv=LD_PRELOAD=/x", "ds=nocloud",
        "cc:", "cloud-config-url=u", "module_blacklist=virtio", "initcall_blacklist=x", "mitigations=off", "nokaslr",
        "kgdboc=ttyS0", "earlyprintk=serial", "resume=/dev/vdc", "acpi_rsdp=0x1000", "lockdown=none",
        "lockdown=integrity", "mem_encrypt=off", "--",
    ],
)  # fmt: skip
def test_a_word_that_would_undo_the_measured_boot_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="refused"):
        build_cmdline(["quiet", word])


@pytest.mark.parametrize("word", ["initrd=x", "noresume", "acpi=off", "dsx=1", "rdx", "systemd.swap=0", "breakx"])
def test_control_a_word_that_only_looks_like_a_denied_one_is_accepted(word: str) -> None:
    """Control for the denied words."""
    assert build_cmdline(["quiet", word]) == f"quiet {word}"


@given(st.lists(st.text(UNICODE, max_size=20), max_size=8))
def test_a_made_line_is_split_into_its_words_again(words: list[str]) -> None:
    try:
        line = build_cmdline(words)
    except UserError:
        return
    assert line.isascii()
    assert line.split() == words
    assert not set(line) & set("\"'\\\n\t\0")
    names = [word.partition("=")[0] for word in words]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("acpi", [True, False])
def test_the_hardening_words_have_reasons_and_make_a_valid_line(acpi: bool) -> None:
    words = hardening_words(acpi=acpi)
    line = build_cmdline(word.text for word in words)
    assert all(word.reason for word in words)
    assert ("acpi=off" in line.split()) is not acpi
    needed = "panic=-1 oops=panic nohibernate noresume systemd.import_credentials=no systemd.gpt_auto=0"
    assert set(needed.split()) <= set(line.split())


def test_the_threat_model_has_every_hardening_word_with_its_reason() -> None:
    page = (PROJECT / "docs" / "threat-model.md").read_text()
    table = page.partition("## The words on the command line")[2].partition("These words were judged")[0]
    rows = re.findall(r"^\| `(\S+)` \| (.+) \|$", table, re.MULTILINE)
    assert rows == [(word.text, word.reason) for word in hardening_words(acpi=False)]


def test_only_the_emulated_line_names_the_emulation() -> None:
    def line(emulated: bool) -> str:
        words = verity_words(table="t", rootfs="ext4", writable="copy", tmpfs=SIZES, acpi=False, emulated=emulated)
        return build_cmdline(word.text for word in words)

    assert "emulated" not in line(False)
    assert line(True) == line(False) + " sevsnp.emulated=1"
    assert "sevsnp.tmpfs=etc:1,home:2,var:3,tmp:4" in line(False).split()


@pytest.mark.parametrize("acpi", [True, False])
def test_the_line_of_an_encrypted_root_fits_and_names_its_owner_and_volume(acpi: bool) -> None:
    def line(emulated: bool) -> str:
        words = luks_words(header=header, tables="b" * 64, owner=owner, acpi=acpi, emulated=emulated)
        assert all(word.reason for word in words)
        return build_cmdline(word.text for word in words)

    header, owner = f"1048576:{'a' * 64}", "+/" * 134
    assert line(True) == line(False) + " sevsnp.emulated=1"
    words = [word for word in line(False).split() if word.startswith("sevsnp.")]
    assert words == [
        "sevsnp.mode=luks", f"sevsnp.luks=1:{header}:{'b' * 64}", "sevsnp.rootfs=ext4", f"sevsnp.owner={owner}"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("systemd.import_credentials=no", "systemd.import-credentials=yes"),
        ("sysctl.kernel.sysrq=0", "sysctl.kernel/sysrq=1"),
    ],
)
def test_another_spelling_of_a_word_is_the_same_word(one: str, other: str) -> None:
    assert build_cmdline([one]) == one and build_cmdline([other]) == other
    with pytest.raises(UserError, match="given twice"):
        build_cmdline([one, other])
