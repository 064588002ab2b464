# SPDX-License-Identifier: Apache-2.0
"""The domain XML of a VM config, read back field by field, and again after each field is changed."""

import base64
import dataclasses
import functools
import hashlib
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from sevsnp.errors import UserError
from sevsnp.launchers.guest import Guest
from sevsnp.launchers.libvirt import export_libvirt, render_domain
from sevsnp.system.template import find_template
from sevsnp.vm_config.config import Disk, File, VmConfig
from tests.support.evidence import write_file
from tests.support.exports import guest_of, make_config, sign

TEMPLATE = find_template("libvirt-domain.xml.j2")


def domain_of(config: VmConfig, network: str = "default", **changes: Any) -> ElementTree.Element:
    return ElementTree.fromstring(render_domain(guest_of(config, **changes), network, TEMPLATE))


def text(domain: ElementTree.Element, path: str) -> str:
    (found,) = domain.findall(path)
    return found.text or ""


def values(domain: ElementTree.Element) -> dict[str, object]:
    """Everything in the domain that a VM config decides, by the name of the field there."""
    (security,) = domain.findall("launchSecurity")
    assert dict(security.attrib) | {"authorKey": ""} == {"type": "sev-snp", "kernelHashes": "yes", "authorKey": ""}
    (loader,) = domain.findall("os/loader")
    assert dict(loader.attrib) == {"type": "rom", "readonly": "yes", "stateless": "yes"}
    return {
        "vcpus": int(text(domain, "vcpu")),
        "vcpu_model": text(domain, "cpu/model"),
        "guest_policy": int(text(domain, "launchSecurity/policy"), 16),
        "host_data": base64.b64decode(text(domain, "launchSecurity/hostData")),
        "firmware": Path(loader.text or ""),
        "kernel": Path(text(domain, "os/kernel")),
        "initrd": Path(text(domain, "os/initrd")),
        "cmdline": text(domain, "os/cmdline"),
        "disks": [
            (text(disk, "serial"), Path(disk.findall("source")[0].attrib["file"]), bool(disk.findall("readonly")))
            for disk in domain.findall("devices/disk")
        ],
        "identity": tuple(base64.b64decode(item.text or "") for item in security if item.tag in ("idBlock", "idAuth")),
        "author": security.attrib["authorKey"],
    }


def expected(config: VmConfig) -> dict[str, object]:
    launch = config.launch
    return {
        **{name: getattr(launch, name) for name in ("vcpus", "vcpu_model", "guest_policy", "host_data")},
        **{name: getattr(launch, name).path for name in ("firmware", "kernel", "initrd")},
        "cmdline": launch.cmdline.path.read_text(),
        "disks": [(disk.role, disk.path, True) for disk in launch.disks],
        "identity": (),
        "author": "no",
    }


def test_the_domain_has_the_fields_of_the_vm_config(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    domain = domain_of(config, memory=3 << 30)
    assert values(domain) == expected(config)
    assert text(domain, "memory") == str(3 << 30)
    assert [disk.attrib["dev"] for disk in domain.findall("devices/disk/target")] == ["vda", "vdb"]
    assert domain.findall("metadata/*")[0].attrib["launchDigest"] == config.require_reference().launch_digest.hex()


def other_disks(place: Path) -> tuple[Disk, ...]:
    path = place / "other.img"
    path.write_bytes(b"other")
    return (Disk("other", path, 5, hashlib.sha256(b"other").hexdigest()),)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "vcpus": lambda _: 4,
    "vcpu_model": lambda _: "EPYC-Genoa",
    "guest_policy": lambda _: 0x20000,
    "host_data": lambda _: b"\xff" * 32,
    "kernel": lambda place: write_file(place / "other-kernel", b"other"),
    "initrd": lambda place: write_file(place / "other-initrd", b"other"),
    "cmdline": lambda place: write_file(place / "other-cmdline", b"other words"),
    "firmware": lambda place: write_file(place / "other-firmware", (place / "firmware").read_bytes()),
    "disks": other_disks,
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_that_is_changed(tmp_path: Path, field: str) -> None:
    before = values(domain_of(make_config(tmp_path)))
    config = make_config(tmp_path, **{field: CHANGES[field](tmp_path)})
    after = values(domain_of(config))
    assert after == expected(config)
    assert {name for name in after if after[name] != before[name]} == {field}


@pytest.mark.parametrize("author", [True, False])
def test_an_id_block(tmp_path: Path, author: bool) -> None:
    config, identity = sign(make_config(tmp_path), author=author)
    domain = domain_of(config)
    signed = {"identity": (identity.block.encode(), identity.auth.encode()), "author": "yes" if author else "no"}
    assert values(domain) == {**expected(config), **signed}


def test_xml_characters_in_names_are_escaped(tmp_path: Path) -> None:
    place = tmp_path / "a,b & <c> \"d\" 'e' ]]> $(f) é"
    place.mkdir()
    config = make_config(place, cmdline=write_file(place / "words", b"x=<&>,;]]> y=$(z)"))
    domain = domain_of(config)
    assert values(domain) == expected(config)
    assert [item.tag for item in domain.iter()] == [item.tag for item in domain_of(make_config(tmp_path / "b")).iter()]


TEXT = strategies.text(strategies.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(path=TEXT, cmdline=TEXT, network=TEXT)
def test_any_text_is_read_back_unchanged_or_refused(path: str, cmdline: str, network: str) -> None:
    launch = dataclasses.replace(any_guest().launch, kernel=File(Path("/") / path, "0" * 64))
    guest = dataclasses.replace(any_guest(), launch=launch, cmdline=cmdline)
    try:
        domain = ElementTree.fromstring(render_domain(guest, network, TEMPLATE))
    except UserError as error:
        assert "which has no place in XML" in error.message
    else:
        assert text(domain, "os/kernel") == str(launch.kernel.path)
        assert text(domain, "os/cmdline") == cmdline
        assert domain.findall("devices/interface/source")[0].attrib == {"network": network}


@functools.cache
def any_guest() -> Guest:
    with tempfile.TemporaryDirectory() as place:
        return guest_of(make_config(Path(place)))


def test_xml_characters_in_the_network_name_are_escaped(tmp_path: Path) -> None:
    name = "a' b\"/><x>"
    domain = domain_of(make_config(tmp_path), network=name)
    assert domain.findall("devices/interface/source")[0].attrib == {"network": name}


def test_a_path_that_xml_cannot_hold(tmp_path: Path) -> None:
    config = make_config(tmp_path / "a\u0085b")
    with pytest.raises(UserError, match="found the character 0x85, which has no place in XML"):
        domain_of(config)


def test_more_disks_than_letters(tmp_path: Path) -> None:
    (disk,) = other_disks(tmp_path)
    disks = tuple(disk._replace(role=f"disk-{number}") for number in range(27))
    assert len(domain_of(make_config(tmp_path, disks=disks[:26])).findall("devices/disk")) == 26
    with pytest.raises(UserError, match="disk: found 27, expected at most 26"):
        domain_of(make_config(tmp_path, disks=disks))


def test_the_file_is_written_and_stays_after_a_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path / "made")
    arguments: dict[str, Any] = {
        "vm_config": config.source,
        "asked": {},
        "memory": 1 << 30,
        "files": "/srv/guest",
        "network": "default",
        "template": TEMPLATE,
        "output": tmp_path / "out put",
    }
    export_libvirt(**arguments, name="one")
    written = tmp_path / "out put" / "one.xml"
    said = capsys.readouterr().out
    assert config.require_reference().launch_digest.hex() in said and f"virsh define '{written}'" in said
    assert values(ElementTree.parse(written).getroot())["kernel"] == Path("/srv/guest/kernel")
    config.launch.kernel.path.write_bytes(b"another")
    before = written.read_bytes()
    with pytest.raises(UserError, match="found SHA-256"):
        export_libvirt(**arguments, name="one")
    assert written.read_bytes() == before
