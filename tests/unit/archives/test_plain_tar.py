# SPDX-License-Identifier: Apache-2.0
"""The fast reader of tar headers: it gives the same members as tarfile, or leaves the archive to tarfile."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sevsnp.archives import tar as tar_module
from sevsnp.archives.plain_tar import plain_members
from sevsnp.archives.rootfs import directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Entry, Kind, read_tar
from sevsnp.archives.tar_writer import write_tar
from sevsnp.errors import UserError

EPOCH = 1_700_000_000
CAPABILITY = bytes.fromhex("0100000200240000000000000000000000000000")


def slowly(path: Path) -> dict[str, Entry]:
    """The same archive, read through tarfile alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_module, "plain_members", lambda path, most: None)
        return read_tar(path)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    first = text_entry("a/file", "content")
    entries = [
        directory_entry(""),
        directory_entry("a", 0o2750, 5, 6),
        first,
        Entry("a/linked", Kind.FILE, 0o644, content=first.content),
        text_entry("a/" + "long" * 40, "x" * 1000, uid=1 << 22, gid=1 << 23),
        link_entry("a/" + "l" * 120, "target" * 30),
        Entry("a/capable", Kind.FILE, 0o755, content=text_entry("c", "x").content, capability=CAPABILITY),
        Entry("null", Kind.CHARACTER, 0o666, device=(1, 3)),
        Entry("fifo", Kind.FIFO, 0o600),
        text_entry("umlaut-ä-\udcff", ""),
    ]
    write_tar(entries, tmp_path / "ours.tar", epoch=EPOCH)
    return tmp_path / "ours.tar"


def test_the_fast_reader_reads_our_archives_as_tarfile_does(ours: Path) -> None:
    members = plain_members(ours)
    assert members is not None and len(members) == 10
    found = read_tar(ours)
    assert found == slowly(ours) and list(found) == list(slowly(ours))
    assert found["a/linked"].content == found["a/file"].content
    assert found["a/capable"].capability == CAPABILITY


@pytest.mark.parametrize("form", ["ustar", "pax", "gnu", "v7", "oldgnu"])
def test_archives_of_other_programs(tmp_path: Path, form: str) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / ("d" * 60)).mkdir(parents=True)
    (tree / "deep" / ("d" * 60) / ("n" * 60)).write_text("a name in two parts")
    (tree / "file").write_bytes(b"\0" * 5000)
    (tree / "sparse").open("wb").truncate(1 << 20)
    (tree / "link").symlink_to("file")
    (tree / "hard").hardlink_to(tree / "file")
    archive = tmp_path / "other.tar"
    words = ["tar", f"--format={form}", "-C", str(tree), "-cf", str(archive), "."]
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode and b"cannot" not in done.stderr and b"too long" not in done.stderr:
        pytest.fail(done.stderr.decode())
    # Each of these has something that is left to tarfile; what counts is that both ways say the same.
    assert read_tar(archive) == slowly(archive)


def test_the_content_of_every_sparse_file_in_an_archive_is_read(tmp_path: Path) -> None:
    for number in range(3):
        with (tmp_path / f"sparse{number}").open("wb") as stream:
            stream.truncate(1 << 20)
            stream.seek(number << 18)
            stream.write(b"data %d" % number)
    names = [f"sparse{number}" for number in range(3)]
    subprocess.run(["tar", "--format=pax", "-S", "-C", tmp_path, "-cf", tmp_path / "s.tar", *names], check=True)
    for name, entry in read_tar(tmp_path / "s.tar").items():
        assert entry.content is not None
        assert b"".join(entry.content.pieces()) == (tmp_path / name).read_bytes()


def test_sparse_files_are_left_to_tarfile(tmp_path: Path) -> None:
    (tmp_path / "sparse").open("wb").truncate(1 << 20)
    subprocess.run(["tar", "--format=pax", "-S", "-C", tmp_path, "-cf", tmp_path / "s.tar", "sparse"], check=True)
    assert plain_members(tmp_path / "s.tar") is None
    (entry,) = read_tar(tmp_path / "s.tar").values()
    assert entry.content is not None and entry.content.sparse and entry.content.size == 1 << 20


@given(place=st.integers(0, 8 * 512 - 1), value=st.integers(0, 255), mend=st.booleans())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_header_is_read_as_by_tarfile_or_not_at_all(
    ours: Path, tmp_path: Path, place: int, value: int, mend: bool
) -> None:
    data = bytearray(ours.read_bytes())
    data[place] = value
    start = place // 512 * 512
    if mend and data[start + 257 : start + 262] == b"ustar":
        # With a right checksum the change is in what the header says, and not only a damaged one.
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    changed = tmp_path / "changed.tar"
    changed.write_bytes(data)
    if plain_members(changed) is None:
        return
    try:
        expected: object = slowly(changed)
    except UserError:
        expected = None
    try:
        assert read_tar(changed) == expected
    except UserError:
        assert expected is None


def test_a_truncated_archive_is_left_to_tarfile(ours: Path, tmp_path: Path) -> None:
    data = ours.read_bytes()
    for end in range(0, len(data) - 1024, 256):
        (tmp_path / "cut.tar").write_bytes(data[:end])
        members = plain_members(tmp_path / "cut.tar")
        # The end mark itself may be there already.
        assert members is None or len(members) == 10


def test_unknown_records_are_left_to_tarfile(tmp_path: Path) -> None:
    archive = tmp_path / "odd.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("file")
        member.size, member.pax_headers = 1, {"SCHILY.xattr.user.note": "x"}
        tar.addfile(member, io.BytesIO(b"x"))
    assert plain_members(archive) is None
    assert read_tar(archive)["file"].attributes == ("user.note",)
