# SPDX-License-Identifier: Apache-2.0
"""Disk images that name other files: refused by name, or read without them. A canary lies beside each.

Control arm of each: a program that opens the image as QEMU offers to has the canary's content in the disk, or has asked
the server that the image names.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.e2e.guest import free_port
from sevsnp.errors import UserError
from sevsnp.images.foreign import import_image
from sevsnp.qemu.blocks import BlockFile
from sevsnp.qemu.confine import Access, landlock_version
from sevsnp.qemu.disk_format import DiskFormat, disk_format
from sevsnp.qemu.disk_record import format_of
from sevsnp.system.command import run
from tests.conftest import Built
from tests.support.confined import files_of, opened_by, qemus_with
from tests.support.hostile_images import CANARY, IMAGES, MIB, Place, edited, read_carelessly, with_data_file
from tests.support.waiting import NET, wait_until

# For these QEMU itself is started twice; the others differ in the first line of defence only.
_STARTED = ("qcow2 with a raw data file", "VMDK with a parent by json")


class Server:
    """Listens at a port of 127.0.0.1 and counts who comes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.came = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.came += 1
                connection.close()

    def close(self) -> None:
        # Unlike close, it wakes the thread that waits.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def place(tools: Path, tmp_path: Path, server: Server) -> Iterator[Place]:
    """A directory with the canary, open as it may be in the process that starts QEMU."""
    made = Place(tmp_path, tools / "qemu-img", port=server.port)
    made.put_canary()
    descriptor = os.open(made.canary, os.O_RDONLY)
    yield replace(made, descriptor=descriptor)
    os.close(descriptor)


def refused_import(place: Place) -> str:
    """What the conversion of the image says; its appliance is never started, for there is none."""
    nothing = place.directory / "nothing"
    with pytest.raises(UserError) as caught:
        import_image(
            image=place.image,
            root_device="",
            qemu=nothing,
            kernel=nothing,
            initrd=nothing,
            probe_cache=nothing,
            output=place.directory / "imported.tar",
        )
    assert not (place.directory / "imported.tar").exists()
    return str(caught.value)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_names_another_file_is_refused_by_name(name: str, place: Place, server: Server) -> None:
    hostile = IMAGES[name]
    hostile.make(place)
    place.put_canary()
    said = refused_import(place)
    assert str(place.image) in said and hostile.refusal in said, said
    for form in DiskFormat:
        if form.value == hostile.form:
            with pytest.raises(UserError):
                BlockFile("disk", place.image, form).arguments()
    assert server.came == 0
    done = read_carelessly(place, hostile.form)
    if hostile.reads:
        assert place.out.read_bytes().startswith(CANARY), done.stderr
    else:
        assert done.returncode != 0 and server.came == 1


def careless(place: Place, form: str) -> list[str]:
    """The option for a disk of whose backing file nothing is said."""
    return ["-blockdev", f"driver={form},node-name=disk,file.driver=file,file.filename={place.image}"]


@pytest.mark.parametrize("name", _STARTED)
def test_a_confined_qemu_cannot_open_the_canary_either(name: str, built: Built, place: Place) -> None:
    """The second line of defence, for a name that the first one would overlook: QEMU has no right to open it."""
    if not landlock_version():
        pytest.skip("this kernel has no Landlock")
    hostile = IMAGES[name]
    hostile.make(place)
    place.put_canary()
    access = Access(read=(str(place.image),), write=(str(place.image),))
    files, said = opened_by(built.qemu, careless(place, hostile.form), access)
    assert files == [] and "Permission denied" in said, said
    files, said = opened_by(built.qemu, careless(place, hostile.form), Access(everything=True))
    assert str(place.canary) in files, said


def vhdx_with_parent(place: Place) -> Path:
    image = place.create("vhdx")
    parameters = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
    content = image.read_bytes()
    metadata = content.index(b"metadata")
    at = content.index(parameters, metadata)
    offset = int.from_bytes(content[at + 16 : at + 20], "little")
    return edited(image, metadata + offset + 4, b"\2\0\0\0")


def test_a_vhdx_with_a_parent_is_refused(place: Place) -> None:
    """QEMU does not read such an image at all. Control: without the mark of a parent both accept it."""
    place.create("vhdx")
    assert disk_format(place.image) is DiskFormat.VHDX
    assert read_carelessly(place, "vhdx").returncode == 0
    vhdx_with_parent(place)
    assert "VHDX with a parent" in refused_import(place)
    assert read_carelessly(place, "vhdx").returncode != 0


def test_a_vhd_with_a_parent_is_refused_by_the_footer_that_qemu_reads(place: Place) -> None:
    """QEMU reads the footer's copy at the start. Control: with an unchanged copy the image is accepted."""
    image = place.create("vpc")
    assert disk_format(image) is DiskFormat.VHD
    edited(image, 60, b"\0\0\0\4")
    assert "VHD with a parent" in refused_import(place)


def test_a_qcow2_that_only_names_a_data_file_is_refused(place: Place) -> None:
    """It has the header extension, without the mark that makes QEMU open that file."""
    image = with_data_file("on")(place)
    edited(image, 72, bytes(8))
    with pytest.raises(UserError, match="names a file for its data"):
        disk_format(image)
    place.create("qcow2")
    assert disk_format(image) is DiskFormat.QCOW2
    edited(image, 72, (1 << 40).to_bytes(8, "big"))
    with pytest.raises(UserError, match="unknown features"):
        disk_format(image)


def raw_disk(place: Place) -> Path:
    place.image.write_bytes((bytes(510) + b"\x55\xaa" + b"of the guest").ljust(4 * MIB, b"\0"))
    return place.image


def guest_writes_qcow2(place: Place) -> None:
    """What a guest can do to its own raw disk: put an image's header at its start, with the canary as data file."""
    header = place.directory / "header"
    options = f"data_file={place.canary},data_file_raw=on"
    run([place.qemu_img, "create", "-q", "-f", "qcow2", "-o", options, header, "1M"])
    place.put_canary()
    with place.image.open("r+b") as stream:
        stream.write(header.read_bytes())


def test_a_raw_disk_keeps_its_recorded_format(built: Built, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Its format is kept from its first use. Control: a QEMU that detects the format opens the canary for writing."""
    record = place.directory / "disk-formats.json"
    image = raw_disk(place)
    assert format_of(image, record) is DiskFormat.RAW
    guest_writes_qcow2(place)
    form = format_of(image, record)
    assert form is DiskFormat.RAW
    assert "begins as QCOW2" in capsys.readouterr().out
    disk = BlockFile("disk", image, form)
    access = Access(write=(str(image),))
    files, said = opened_by(built.qemu, disk.arguments(), access)
    assert str(image) in files and str(place.canary) not in files, said
    probing = ["-drive", f"if=none,id=disk,file={image}"]
    files, said = opened_by(built.qemu, probing, Access(everything=True))
    assert str(place.canary) in files, said


def test_a_copied_disk_without_a_record_is_refused(place: Place) -> None:
    """A copy of such a disk is another file, for which there is no record."""
    record = place.directory / "disk-formats.json"
    raw_disk(place)
    guest_writes_qcow2(place)
    with pytest.raises(UserError, match="data are in another file"):
        format_of(place.image, record)
    assert not record.exists()


def test_a_replaced_image_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal's remedy works as it is printed. Control: an unchanged image gives no message."""
    record = place.directory / "disk formats.json"
    image = place.create("qcow2")
    for _ in range(2):
        assert format_of(image, record) is DiskFormat.QCOW2
    image.write_bytes((bytes(510) + b"\x55\xaa").ljust(MIB, b"\0"))
    with pytest.raises(UserError, match="was a QCOW2 image") as caught:
        format_of(image, record)
    assert capsys.readouterr().out == ""
    subprocess.run(["sh", "-c", caught.value.hint.rpartition(": ")[2]], check=True)
    assert format_of(image, record) is DiskFormat.RAW
    record.write_text("[]")
    with pytest.raises(UserError, match="not readable"):
        format_of(image, record)


def opened_image(image: Path, process: "subprocess.Popen[bytes]", said: Path) -> list[list[str]]:
    """The open files of the QEMU that has the image open."""
    assert process.poll() is None, said.read_text()
    found = []
    for qemu in qemus_with(str(image)):
        with contextlib.suppress(OSError):
            found.append(files_of(qemu))
    return [files for files in found if str(image) in files]


@pytest.mark.boot
def test_run_guest_opens_a_raw_disk_as_raw_and_is_killed_with_doit(built: Built, place: Place) -> None:
    """Also in the second run, after the guest wrote a header; each run ends by SIGKILL of doit."""
    image = raw_disk(place)
    words = ["MEMORY=256M", "GUEST_NETWORK=restricted", f"CONFIG_DIR={built.config_dir}", f"IMAGE={image}"]
    words.append("NAME=raw-disk")  # another test runs a plain guest of the same project meanwhile
    try:
        run_and_kill(built, image, words, place)
        guest_writes_qcow2(place)
        run_and_kill(built, image, words, place)
    finally:
        (built.build / "run" / "disk-formats.json").unlink(missing_ok=True)


def run_and_kill(built: Built, image: Path, words: list[str], place: Place) -> None:
    log = place.directory / "said"
    ports = [f"SSH_PORT={free_port()}", f"ATTEST_PORT={free_port()}"]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "doit", "run_guest", *words, *ports],
            cwd=built.project,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        (files,) = wait_until(lambda: opened_image(image, process, log), lambda: "QEMU with the image")
        assert str(place.canary) not in files
    finally:
        process.kill()
        process.wait(NET)
    wait_until(lambda: not qemus_with(str(image)), lambda: "end of QEMU")
