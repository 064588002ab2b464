# SPDX-License-Identifier: Apache-2.0
"""The encrypted guest with any date and time: the host can set the clock that QEMU gives to a guest as it likes.

The clock has two digits of the year, and a register for the century that only ACPI names (FADT). The firmware reads 99
as 1999, and writes that century into the register, whatever QEMU was told. A guest without ACPI (with one vCPU) does
not read the register, and knows 1970 to 2069. So for 2099 the guest has ACPI, and the host changes the century after
the firmware has written it.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sevsnp.e2e.guest import wait_for_login
from sevsnp.e2e.luks import look_at_root
from sevsnp.keys.pairs import certificate_der
from sevsnp.keys.paths import Keys
from sevsnp.owner.key_release import connect, owner_context
from sevsnp.vm_config.config import VmConfig
from tests.conftest import Built
from tests.support.configs import other_words, without_stage
from tests.support.harness import BOOT_SECONDS
from tests.support.luks_guests import (
    anonymous,
    booted,
    image_copy,
    luks_config,
    make_owner,
    offer_key,
    unlock,
    wait_for_key,
)
from tests.support.shared_guests import Running

pytestmark = pytest.mark.boot


def clock(year: int) -> tuple[str, ...]:
    """QEMU's option for a machine whose battery-backed clock stands at the beginning of ``year``."""
    return ("-rtc", f"base={year}-01-01T00:00:00")


def change_century(running: Running) -> None:
    """From 19 to 20, in BCD, between the firmware and the kernel's reading of the clock."""
    running.guest.wait_for("EFI stub")
    running.hands.write_clock(0x32, 0x20)


def time_in_guest(port: int) -> datetime:
    """The guest's clock when it began to wait: the certificate that it made for itself is valid from then."""
    with connect("127.0.0.1", port, anonymous()) as connection:
        certificate = connection.getpeercert(binary_form=True)
    assert certificate
    return x509.load_der_x509_certificate(certificate).not_valid_before_utc


@pytest.fixture
def image(built: Built, tmp_path: Path) -> Iterator[Path]:
    with image_copy(luks_config(built).launch.disks[0].path, tmp_path) as copy:
        yield copy


def changed(config: VmConfig, directory: Path, words: Mapping[str, str]) -> VmConfig:
    """A whole and honest VM config with other words on the command line, by old text; with the host's ACPI tables."""
    build = config.launch.initrd.path.parent
    return without_stage(build, config, directory, acpi=True, cmdline=other_words(config, directory, words))


@pytest.mark.full
@pytest.mark.parametrize(
    ("said", "acpi", "believed"),
    [(2000, False, 2000), (2099, False, 1999), (2099, True, 2099)],
)
def test_the_guest_is_unlocked_at_any_time_that_the_host_sets(
    built: Built, image: Path, tmp_path: Path, said: int, acpi: bool, believed: int
) -> None:
    """It waits, is attested, gets its key, opens its root and accepts the owner's login. Control: the test below."""
    owner = make_owner(built, tmp_path)
    config = changed(luks_config(built), tmp_path / "acpi", {}) if acpi else luks_config(built)
    with booted(built, config, image, tmp_path, clock(said)) as running:
        if acpi:
            change_century(running)
        wait_for_key(running)
        assert time_in_guest(running.port).year == believed
        unlock(running, owner, tmp_path / "attested")
        wait_for_login(tmp_path / "attested" / "ssh_config", BOOT_SECONDS)
        assert look_at_root(tmp_path / "attested" / "ssh_config") == {"root_encrypted": True, "integrity": True}
    assert owner.record.generation == 1


def owner_of_today(directory: Path) -> Keys:
    """An owner whose certificate is valid for some days, and as long (201 bytes) as the command line wants it."""
    directory.mkdir()
    key, now = Ed25519PrivateKey.generate(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "o")])
    # The end of its time takes two bytes less before 2050; they are in its serial number.
    days = (now - timedelta(days=2), now + timedelta(days=2))
    certificate = x509.CertificateBuilder(name, name, key.public_key(), 1 << 24, *days).sign(key, None)
    made = Keys.of(directory)
    made.owner_certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    made.owner_private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


@pytest.mark.full
def test_control_a_certificate_with_time_limits_depends_on_the_host_s_clock(
    built: Built, image: Path, tmp_path: Path
) -> None:
    """Most certificates have time limits: then the host's clock decides if the owner's certificate is accepted.

    test_key_protocol.py has the same for more clocks, without a boot.
    """
    keys = owner_of_today(tmp_path / "owner")
    ours, today = (base64.b64encode(certificate_der(one.owner_certificate)).decode() for one in (built.keys, keys))
    config = changed(luks_config(built), tmp_path / "acpi", {ours: today})
    context = owner_context(keys.owner_certificate, keys.owner_private)
    header = hashlib.sha256((built.build / "luks" / "header.bin").read_bytes()).digest()
    with booted(built, config, image, tmp_path / "2099", clock(2099)) as running:
        change_century(running)
        wait_for_key(running)
        assert time_in_guest(running.port).year == 2099
        assert "the guest closed the connection" in offer_key(running.port, context, header, b"a key")
        assert "init: the owner is here" not in running.guest.log()
    with booted(built, config, image, tmp_path / "today") as running:
        wait_for_key(running)
        assert "the disk cannot be opened with this key" in offer_key(running.port, context, header, b"a key")
