# SPDX-License-Identifier: Apache-2.0
"""Archives of build/snp-release: packed to reproducible bytes, unpacked to the same tree, and never outside of it."""

import gzip
import json
import os
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sevsnp.errors import UserError
from sevsnp.packages.pack_release import pack_release
from sevsnp.packages.release_archive import FIRMWARE, REQUIRED, check_release, unpack_release
from sevsnp.packages.tree import MANIFEST, seal
from sevsnp.packages.tree_digest import tree_digest
from sevsnp.packages.wrappers import PROGRAMS
from tasks.packages import SOURCES_OF_TOOLS
from tasks.project import RELEASE, STOCK_FIRMWARE
from tests.support.debian_repository import build_deb, listing
from tests.support.release_tree import PACKAGE, archive_of, directory, member, members_of, small_release, written

Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("release") / "snp-release")


def pack(tree: Path, output: Path) -> tuple[Path, str]:
    pack_release(release=tree, python=tree / "bin/python3", output=output)
    return output, output.with_name(f"{output.name}.sha256").read_text().split()[0]


def refused(archive: tuple[Path, str], **limits: int) -> str:
    """The message with which an archive is refused; nothing of it is left."""
    path, digest = archive
    place = path.parent / "unpacked"
    place.mkdir(exist_ok=True)
    with pytest.raises(UserError) as found:
        unpack_release(archive=path, sha256=digest, output=place / "tree", **limits)
    assert os.listdir(place) == []
    assert "\n" not in found.value.message
    return found.value.message


def test_a_packed_tree_is_unpacked_to_the_same_tree(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, digest = pack(tree, tmp_path / "snp-release.tar.gz")
    said = capsys.readouterr().out
    assert f"PACKAGES_RELEASE={archive} PACKAGES_SHA256={digest}" in said
    unpack_release(archive=archive, sha256=digest, output=tmp_path / "elsewhere/tree")
    again = tmp_path / "elsewhere/tree"
    assert listing(again) == listing(tree)
    assert tree_digest(again, MANIFEST) == json.loads((tree / MANIFEST).read_text())["tree"]
    assert pack(again, tmp_path / "again.tar.gz")[1] == digest


def test_the_bytes_of_an_archive_do_not_depend_on_the_environment(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, digest = pack(tree, tmp_path / "a.tar.gz")
    copy = tmp_path / "other place" / "tree"
    shutil.copytree(tree, copy, symlinks=True)  # other inodes, other times of the directories
    for path in copy.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "C")
    before = os.umask(0o077)
    try:
        archive, again = pack(copy, tmp_path / "b.tar.gz")
    finally:
        os.umask(before)
    assert again == digest
    header = archive.read_bytes()[:10]
    assert struct.unpack("<I", header[4:8]) == (0,)  # RFC 1952: no time
    assert header[3] == 0  # and no file name
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    assert {(one.uid, one.gid, one.mtime, one.uname, one.gname) for one in members} == {(0, 0, 0, "", "")}
    assert [one.name for one in members] == sorted((one.name for one in members), key=lambda name: name.split("/"))


def test_an_archive_of_gnu_tar_is_taken_too(tree: Path, tmp_path: Path) -> None:
    archive, digest = written(tmp_path / "gnu.tar.gz", archive_of(members_of(tree)))
    unpack_release(archive=archive, sha256=digest, output=tmp_path / "tree")
    assert listing(tmp_path / "tree") == listing(tree)


HOSTILE: dict[str, tuple[list[Member], str]] = {
    "an absolute name": ([member("/etc/passwd", b"x")], "'/etc/passwd' is outside of snp-release/"),
    "dots": ([member("snp-release/../../x", b"x")], "'snp-release/../../x' is outside of snp-release/"),
    "another directory": ([directory("other"), member("other/x", b"x")], "'other' is outside of snp-release/"),
    "a name with an escape": ([member("snp-release/\x1b[2J", b"x")], r"'snp-release/\x1b[2J' is outside"),
    "an absolute link": (
        [member("snp-release/x", type=tarfile.SYMTYPE, linkname="/etc")],
        "'snp-release/x' is a link to '/etc', expected a relative link",
    ),
    "a link out": (
        [member("snp-release/x", type=tarfile.SYMTYPE, linkname="../../..")],
        "the link x leads out of the tree",
    ),
    "a link out through another one": (
        [
            member("snp-release/usr/up", type=tarfile.SYMTYPE, linkname=".."),
            member("snp-release/x", type=tarfile.SYMTYPE, linkname="usr/up/../x2"),
        ],
        "the link x leads out of the tree",
    ),
    "a file through a link": (
        [
            member("snp-release/x", type=tarfile.SYMTYPE, linkname="usr"),
            member("snp-release/x/y", b"x"),
        ],
        "'snp-release/x/y' comes before the entry of its directory",
    ),
    "a file in the place of a link": (
        [member("snp-release/lib", b"x")],
        "'snp-release/lib' occurs twice",
    ),
    "a file twice": ([member(f"snp-release/{FIRMWARE}", b"x")], f"'snp-release/{FIRMWARE}' occurs twice"),
    "a file below a file": (
        [member(f"snp-release/{MANIFEST}/x", b"x")],
        f"'snp-release/{MANIFEST}/x' comes before the entry of its directory",
    ),
    "a device": ([member("snp-release/x", type=tarfile.CHRTYPE)], "has the type b'3'"),
    "a pipe": ([member("snp-release/x", type=tarfile.FIFOTYPE)], "has the type b'6'"),
    "a hard link": (
        [member("snp-release/x", type=tarfile.LNKTYPE, linkname="snp-release/packages.json")],
        "has the type b'1'",
    ),
    "a set-user-ID bit": ([member("snp-release/x", b"x", 0o4755)], "'snp-release/x' has the mode 4755"),
    "a set-group-ID bit": ([member("snp-release/x", b"x", 0o2755)], "'snp-release/x' has the mode 2755"),
    "a file that no manifest knows": ([member("snp-release/x", b"x")], "not as it was made: its files have the digest"),
    "a long header": (
        [member("x", b"x" * (1 << 17), type=tarfile.XHDTYPE)],
        "found a header with 131072 bytes, expected at most 65536",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_entry_is_refused(case: str, tree: Path, tmp_path: Path) -> None:
    """Each comes after a complete release, which alone is accepted: the control is the test of GNU tar's archive."""
    more, message = HOSTILE[case]
    before = sorted(os.listdir(tmp_path.parent))
    found = refused(written(tmp_path / "hostile.tar.gz", archive_of([*members_of(tree), *more])))
    assert message in found
    assert sorted(os.listdir(tmp_path.parent)) == before


def test_an_endless_chain_of_headers_is_refused_in_one_line(tree: Path, tmp_path: Path) -> None:
    """Each header describes the next one. Control: a single such header, before a file."""
    record = b"11 a=bcdef\n"
    headers = [member("x", record, type=tarfile.XHDTYPE)]
    archive = written(tmp_path / "one.tar.gz", archive_of([*members_of(tree), *headers, member("snp-release/x")]))
    assert "not as it was made" in refused(archive)
    archive = written(tmp_path / "many.tar.gz", archive_of([*members_of(tree), *headers * 5000]))
    assert "damaged, or not a .tar.gz" in refused(archive)


def test_sizes_are_limited(tree: Path, tmp_path: Path) -> None:
    members = [*members_of(tree), member("snp-release/zeros", bytes(3 << 20))]
    archive = written(tmp_path / "bomb.tar.gz", archive_of(members))
    assert archive[0].stat().st_size < 100_000
    assert "found more than 1048576 unpacked bytes" in refused(archive, most_bytes=1 << 20)
    assert "found more than 10 entries" in refused(archive, most_entries=10)
    # The control: within the limits the archive is unpacked, and refused only because of the file's content.
    assert "not as it was made" in refused(archive, most_bytes=8 << 20, most_entries=len(members))


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def wrong_checksum(data: bytes) -> bytes:
    return data[:-8] + bytes(4) + data[-4:]


@pytest.mark.parametrize(
    "change", [cut, wrong_checksum, lambda _: b"", lambda _: b"no archive", lambda data: data[:1000] + bytes(200)]
)
def test_a_damaged_archive_is_refused(change: Callable[[bytes], bytes], tree: Path, tmp_path: Path) -> None:
    """The digest matches here: the archive was damaged before its digest was computed."""
    assert "damaged" in refused(written(tmp_path / "a.tar.gz", archive_of(members_of(tree)), change))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_refused_in_one_line_and_leave_no_file(
    data: st.DataObject, tree: Path, tmp_path: Path
) -> None:
    """Bytes of the tar inside the archive, most of them in headers; its digest is that of the changed archive."""
    plain = bytearray(gzip.decompress(archive_of(members_of(tree))))
    blocks = len(plain) // 512
    for _ in range(data.draw(st.integers(1, 4))):
        place = 512 * data.draw(st.integers(0, blocks - 1)) + data.draw(st.integers(0, 511))
        plain[place] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # a header with a right checksum: the change itself has to be noticed
            header = place // 512 * 512
            total = sum(plain[header : header + 148]) + 8 * 32 + sum(plain[header + 156 : header + 512])
            plain[header + 148 : header + 156] = b"%06o\0 " % total
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        archive, digest = written(Path(folder) / "a.tar.gz", gzip.compress(bytes(plain), 1))
        output = Path(folder) / "out/tree"
        try:
            unpack_release(archive=archive, sha256=digest, output=output)
        except UserError as error:
            assert "\n" not in error.message
            assert not output.exists() and os.listdir(output.parent) == []
        else:
            assert listing(output) == listing(tree)
        assert sorted(os.listdir(folder)) == ["a.tar.gz", "out"]


def test_an_archive_that_changes_after_its_check_is_refused(tree: Path, tmp_path: Path) -> None:
    archive, _ = written(tmp_path / "a.tar.gz", archive_of(members_of(tree)))
    assert "has changed since" in refused((archive, "0" * 64))


@pytest.mark.parametrize("name", REQUIRED)
def test_an_incomplete_tree_is_refused(name: str, tree: Path, tmp_path: Path) -> None:
    left = [one for one in members_of(tree) if one[0].name != f"snp-release/{name}"]
    found = refused(written(tmp_path / "a.tar.gz", archive_of(left)))
    assert found.endswith(f"not a release of this project: it lacks {name}")


def test_a_release_has_one_kernel_and_a_manifest(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy, symlinks=True)
    check_release(copy, "it")  # control
    build_deb(copy / "linux/guest", "linux-image-2")
    with pytest.raises(UserError, match=r"found 2 files linux/guest/linux-image-\*\.deb, expected one"):
        check_release(copy, "it")
    (copy / "linux/guest/linux-image-2_1.0_amd64.deb").unlink()
    good = json.loads((copy / MANIFEST).read_text())
    for text in (
        "", "[]", '{"sets": {}}', '{"sets": {"tools": [{}]}, "tree": ""}', "[" * 100_000,
        json.dumps({**good, "sets": {"tools": [{**good["sets"]["tools"][0], "size": "1"}]}}),
        '{"sets": {}, "sets": {}, "tree": ""}',
        json.dumps(good), (copy / MANIFEST).read_text().replace('"1.0"', '"1.1"'),
    ):  # fmt: skip
        (copy / MANIFEST).write_text(text)
        with pytest.raises(UserError, match=r"it: packages\.json is not that of a release"):
            check_release(copy, "it")


def test_the_digest_of_a_tree_covers_names_contents_and_modes(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy, symlinks=True)
    before = tree_digest(copy, MANIFEST)
    assert before == tree_digest(tree, MANIFEST)
    (copy / MANIFEST).write_text("another")
    os.utime(copy / FIRMWARE, (1, 1))
    assert tree_digest(copy, MANIFEST) == before
    changes: tuple[Callable[[], object], ...] = (
        lambda: (copy / FIRMWARE).write_text("another"),
        lambda: (copy / FIRMWARE).chmod(0o755),
        lambda: (copy / "empty").mkdir(),
        lambda: (copy / "link").symlink_to("a"),
        lambda: (copy / "link").rename(copy / "link2"),
        lambda: (copy / "link").symlink_to("b"),
        lambda: (copy / "bin/mke2fs").rename(copy / "bin/mke2fs2"),
    )
    seen = {before}
    for change in changes:
        change()
        seen.add(tree_digest(copy, MANIFEST))
    assert len(seen) == len(changes) + 1
    os.mkfifo(copy / "pipe")
    with pytest.raises(UserError, match="pipe: expected a file"):
        tree_digest(copy, MANIFEST)


def test_a_tree_that_was_edited_is_not_packed(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy, symlinks=True)
    (copy / FIRMWARE).write_text("edited")
    with pytest.raises(UserError, match="not as it was made"):
        pack(copy, tmp_path / "a.tar.gz")
    assert sorted(os.listdir(tmp_path)) == ["tree"]
    seal(copy, {"tools": (PACKAGE,)})  # control
    pack(copy, tmp_path / "a.tar.gz")


def test_an_earlier_tree_stays_when_an_archive_is_refused(tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "place/tree"
    archive, digest = pack(tree, tmp_path / "good.tar.gz")
    unpack_release(archive=archive, sha256=digest, output=output)
    bad, of_bad = written(tmp_path / "bad.tar.gz", archive.read_bytes(), cut)
    with pytest.raises(UserError, match="damaged"):
        unpack_release(archive=bad, sha256=of_bad, output=output)
    assert listing(output) == listing(tree)
    # What a killed run leaves: a scratch directory that nobody holds.
    left = output.parent / ".tree.aaaaaaaa"
    (left / "tree").mkdir(parents=True)
    unpack_release(archive=archive, sha256=digest, output=output)
    assert os.listdir(output.parent) == ["tree"] and listing(output) == listing(tree)


def test_the_required_files_of_a_release_are_those_that_the_tasks_use() -> None:
    assert RELEASE / FIRMWARE == STOCK_FIRMWARE
    assert {f"bin/{name}" for name in PROGRAMS} < set(REQUIRED)


def test_every_value_of_packages_source_has_its_function() -> None:
    from sevsnp.settings.table import SETTINGS

    (setting,) = [one for one in SETTINGS if one.name == "PACKAGES_SOURCE"]
    assert set(SOURCES_OF_TOOLS) == set(setting.allowed)
