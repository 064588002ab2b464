# SPDX-License-Identifier: Apache-2.0
"""AML: every encoding compared with bytes from the specification (ACPI 6.5, chapter 20 and section 6.4)."""

import pytest

from sevsnp.stage import aml


@pytest.mark.parametrize(
    ("size", "encoded"),
    [
        (0, "01"),
        (62, "3f"),  # the last that one byte holds, itself included
        (63, "4104"),
        (0xFFD, "4fff"),
        (0xFFE, "810001"),
        (0xFFFFC, "8fffff"),
        (0xFFFFD, "c1000001"),
    ],
)
def test_the_length_of_a_package_includes_its_own_bytes(size: int, encoded: str) -> None:
    assert aml.package_length(size).hex() == encoded


def test_a_package_has_at_most_28_bits() -> None:
    with pytest.raises(ValueError, match="too many"):
        aml.package_length(1 << 28)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0xFFFF, "0bffff"),
        (0x10000, "0c00000100"),
        (0xFFFFFFFF, "0cffffffff"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_integers_have_their_shortest_form(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


def test_an_integer_has_at_most_64_bits() -> None:
    with pytest.raises(ValueError, match="more than 64 bits"):
        aml.integer(1 << 64)


def test_an_eisa_identifier() -> None:
    assert aml.eisa_id("PNP0A08").hex() == "0c41d00a08"
    assert aml.eisa_id("PNP0A03").hex() == "0c41d00a03"


@pytest.mark.parametrize("text", ["PNP0A0", "pnp0A08", "PNP0a08", "PN10A08", "PNP0A08x"])
def test_a_malformed_eisa_identifier_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no EISA identifier"):
        aml.eisa_id(text)


@pytest.mark.parametrize(("path", "encoded"), [("_S5", b"_S5_"), ("\\_SB", b"\\_SB_"), ("PCI0", b"PCI0")])
def test_names_have_four_letters(path: str, encoded: bytes) -> None:
    assert aml.name_path(path) == encoded


@pytest.mark.parametrize("path", ["", "\\", "PCI01", "pci0", "1PCI", "_SB.PCI0", "^PCI"])
def test_a_malformed_name_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        aml.name_path(path)


def test_terms_contain_their_arguments() -> None:
    assert aml.name("_UID", aml.integer(0)) == b"\x08_UID\x00"
    assert aml.package(b"\x00", b"\x01") == b"\x12\x04\x02\x00\x01"
    assert aml.buffer(b"abc") == b"\x11\x06\x0a\x03abc"
    assert aml.scope("\\_SB", aml.device("PCI0")) == b"\x10\x0d\\_SB_\x5b\x82\x05PCI0"


def test_resources() -> None:
    assert aml.fixed_ports(0xCF8, 8).hex() == "4701f80cf80c0108"
    assert aml.buses(0, 0xFF).hex() == "880d00020c000000" + "0000ff0000000001"
    assert aml.ports(0xD00, 0xFFFF).hex() == "880d00010c030000" + "000dffff000000f3"
    assert aml.memory(0xC0000000, 0xDFFFFFFF).hex() == "871700000c0100000000" + "000000c0ffffffdf0000000000000020"
    assert aml.resources(b"\x01\x02") == b"\x11\x07\x0a\x04\x01\x02\x79\x00"
