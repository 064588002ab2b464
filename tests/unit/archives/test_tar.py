# SPDX-License-Identifier: Apache-2.0
"""Tar archives and layers: entries are read back as written, the bytes are reproducible, and no loss is silent."""

import io
import os
import re
import resource
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import Layer, directory_entries, expression, link_entry, make_rootfs, merge, text_entry
from sevsnp.archives.tar import Entry, Kind, read_tar
from sevsnp.archives.tar_writer import stream_tar, write_tar
from sevsnp.errors import UserError
from sevsnp.images.filesystem import usage

# cap_net_raw=ep as the kernel stores it: VFS_CAP_REVISION_2 with the effective bit, permitted, inheritable.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
EPOCH = 1_000_000_000


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


def make(path: Path, *members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def capable(name: str, value: bytes = CAPABILITY) -> tarfile.TarInfo:
    text = value.decode("utf-8", "surrogateescape")
    return member(name, mode=0o755, pax_headers={"SCHILY.xattr.security.capability": text})


def test_all_fields_of_all_entries_are_read_back(tmp_path: Path) -> None:
    long = "d/" + "x" * 200
    source = make(
        tmp_path / "a.tar",
        (member("./", tarfile.DIRTYPE, mode=0o755), b""),
        (member("./d", tarfile.DIRTYPE, mode=0o1777, uid=5, gid=6), b""),
        (member("./f", mode=0o4755, uid=3_000_000, gid=7, mtime=5.5, uname="me", gname="us"), b"content" * 1000),
        (member("./h", tarfile.LNKTYPE, linkname="./f"), b""),
        (member("./s", tarfile.SYMTYPE, linkname="y" * 150), b""),
        (member("./null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666), b""),
        (member("./p", tarfile.FIFOTYPE), b""),
        (member("./Főtanúsítvány"), b"utf-8"),
        (member(long), b"long"),
        (capable("./ping"), b"ping"),
    )
    output = tmp_path / "b.tar"
    make_rootfs([Layer.from_tar(source)], output, epoch=EPOCH)
    entries = read_tar(output)
    f = entries["f"]
    assert (f.mode, f.uid, f.gid, f.mtime) == (0o4755, 3_000_000, 7, 5)
    assert f.content and f.content.read() == b"content" * 1000
    h = entries["h"].content
    assert h and h.inode == f.content.inode
    assert entries["s"].target == "y" * 150
    assert entries["null"].device == (1, 3) and entries["null"].kind is Kind.CHARACTER
    assert entries["p"].kind is Kind.FIFO
    assert entries["d"].mode == 0o1777 and entries["Főtanúsítvány"].kind is Kind.FILE
    assert entries["ping"].capability == CAPABILITY
    assert long in entries
    with tarfile.open(output) as archive:
        assert all(not info.uname and not info.gname and info.mtime <= EPOCH for info in archive)


def test_a_capability_that_is_not_text_survives(tmp_path: Path) -> None:
    value = bytes([1, 0, 0, 2, 0xFF, 0x80, 0xC3, 10, 61, *[0] * 11])
    output = tmp_path / "c.tar"
    write_tar([*read_tar(make(tmp_path / "a.tar", (capable("f", value), b"1"))).values()], output, epoch=EPOCH)
    assert read_tar(output)["f"].capability == value


@pytest.mark.parametrize("name", ["SCHILY.acl.access", "SCHILY.xattr.user.note", "LIBARCHIVE.xattr.user.note"])
def test_only_schily_xattr_records_have_an_attribute_value(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "a.tar", (member("etc/x", pax_headers={name: "user::rw-"}), b""))
    entry = read_tar(source)["etc/x"]
    assert entry.attributes in (("acl.access",), ("user.note",))
    assert entry.values == ((("user.note", b"user::rw-"),) if name.startswith("SCHILY.xattr") else ())


def test_attributes_are_kept_and_a_hard_link_has_those_of_its_file(tmp_path: Path) -> None:
    value = bytes(range(256))
    headers = {"SCHILY.xattr.user.raw": value.decode("utf-8", "surrogateescape")}
    link = member("b", tarfile.LNKTYPE, linkname="a")
    source = read_tar(make(tmp_path / "a.tar", (member("a", pax_headers=headers), b"1"), (link, b"")))
    assert source["a"].values == source["b"].values == (("user.raw", value),)
    for names in (("a", "b"), ("b",)):  # with and without the name that has them in the archive
        write_tar([source[name] for name in names], tmp_path / "o.tar", epoch=EPOCH)
        found = read_tar(tmp_path / "o.tar")
        assert all(found[name].values == (("user.raw", value),) for name in names)


def test_a_long_name_that_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    name = "x" * 120 + "\udce9"
    write_tar(
        [text_entry(name, "1"), link_entry("s", name), text_entry("z" * 120, "")], tmp_path / "o.tar", epoch=EPOCH
    )
    found = read_tar(tmp_path / "o.tar")
    assert found["s"].target == name and found[name].content and set(found) == {name, "s", "z" * 120}
    assert (tmp_path / "o.tar").read_bytes().count(b"21 hdrcharset=BINARY\n") == 2  # not for the last one


def test_the_later_layer_wins_and_hard_links_keep_their_content(tmp_path: Path) -> None:
    lower = make(tmp_path / "l.tar", (member("a"), b"old"), (member("b", tarfile.LNKTYPE, linkname="a"), b""))
    output = tmp_path / "o.tar"
    make_rootfs([Layer.from_tar(lower), Layer("ours", [text_entry("a", "new")])], output)
    texts = {name: entry.content.read() for name, entry in read_tar(output).items() if entry.content}
    assert texts == {"a": b"new", "b": b"old"}


def test_a_removal_removes_the_whole_subtree_of_earlier_layers_only() -> None:
    lower = Layer("lower", [text_entry("x/y/z", ""), text_entry("x2", ""), text_entry("log/a.log", "")])
    tree = merge([lower, Layer("upper", [text_entry("x/new", "")], remove=["x", "log/*.log"])])
    assert set(tree) == {"", "x", "x/new", "x2", "log"}


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("a/*", ["a/b", "a/b/c"], ["a", "b/a/c"]),
        ("a/**/c", ["a/c", "a/b/b/c"], ["a/b"]),
        ("**/__pycache__", ["__pycache__", "x/__pycache__/y"], ["x/__pycache__x"]),
        ("etc/passwd-", ["etc/passwd-"], ["etc/passwd", "etc/passwd-x"]),
    ],
)
def test_patterns(text: str, yes: list[str], no: list[str]) -> None:
    assert all(re.fullmatch(expression(text), name, re.DOTALL) for name in yes)
    assert not any(re.fullmatch(expression(text), name, re.DOTALL) for name in no)


def test_a_link_to_a_directory_and_a_directory_do_not_replace_each_other() -> None:
    lower = Layer("lower", [text_entry("usr/lib/a", ""), link_entry("lib", "usr/lib")])
    with pytest.raises(UserError, match="lib/: the path leads through a link to usr/lib"):
        merge([lower, Layer("upper", [text_entry("lib/b", "")])])
    with pytest.raises(UserError, match="lib/: a directory, but"):
        merge([lower, Layer("upper", [Entry("lib", Kind.DIRECTORY, 0o755)])])
    with pytest.raises(UserError, match="would replace a directory"):
        merge([lower, Layer("upper", [text_entry("usr/lib", "")])])


@pytest.mark.parametrize("name", ["../etc/passwd", "a/../../b"])
def test_names_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"without '\.\.'"):
        read_tar(make(tmp_path / "a.tar", (member(name), b"")))


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.tar", (member("a"), b"x" * 1000), (member("b"), b"y" * 1000)).read_bytes()
    bad = tmp_path / "bad.tar"
    for data in (b"", b"\x28\xb5\x2f\xfd" + bytes(2000), whole[:700], whole[:1536], whole[:1800], whole[:3000]):
        bad.write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.tar"):
            read_tar(bad)
    bad.write_bytes(whole[:1536] + b"\xff" + whole[1537:])  # the second header
    with pytest.raises(UserError, match="byte 1536"):
        read_tar(bad)
    with pytest.raises(UserError, match="cannot be read"):
        read_tar(tmp_path / "absent.tar")
    with pytest.raises(UserError, match="expected a directory as the root"):
        read_tar(make(tmp_path / "r.tar", (member("./"), b"")))
    with pytest.raises(UserError, match="hard link"):
        read_tar(make(tmp_path / "h.tar", (member("h", tarfile.LNKTYPE, linkname="nowhere"), b"")))


@pytest.fixture
def oddly() -> Iterator[None]:
    """Another umask and time zone while a test runs."""
    mask, zone = os.umask(0o077), os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    yield
    os.umask(mask)
    os.environ.pop("TZ") if zone is None else os.environ.update(TZ=zone)
    time.tzset()


def tree(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / names[0]).chmod(0o700 if names[0].endswith("run") else 0o600)
    return root


def test_same_bytes_from_another_directory_umask_and_zone(tmp_path: Path, oddly: None) -> None:
    here, there = tmp_path / "one.tar", tmp_path / "odd" / "two.tar"
    there.parent.mkdir()
    make_rootfs([Layer("x", directory_entries(tree(tmp_path / "a", ["bin/run", "etc/b", "c"])))], there)
    os.umask(0o022)
    os.environ["TZ"] = "UTC"
    time.tzset()
    second = tree(tmp_path / "zzz" / "b", ["c", "etc/b", "bin/run"])
    (second / "bin/run").chmod(0o755)
    make_rootfs([Layer("y", directory_entries(second))], here)
    assert here.read_bytes() == there.read_bytes()
    assert {name: e.mode for name, e in read_tar(here).items() if e.content} == {
        "bin/run": 0o755,
        "c": 0o644,
        "etc/b": 0o644,
    }


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    import tracemalloc

    big = tmp_path / "big"
    with big.open("wb") as stream:
        stream.truncate(200 << 20)
    (tmp_path / "tree").mkdir()
    big.rename(tmp_path / "tree" / "big")
    tracemalloc.start()
    make_rootfs([Layer("x", directory_entries(tmp_path / "tree"))], tmp_path / "o.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "o.tar").stat().st_size > 200 << 20 and peak < 16 << 20


@pytest.fixture
def holes(tmp_path: Path) -> dict[str, Entry]:
    """A file of 3 GiB whose holes are not in the archive, under two names, and one beside it."""
    folder = tmp_path / "root"
    folder.mkdir()
    with (folder / "holes").open("wb") as stream:
        for place, data in ((5 << 20, b"first"), (2 << 30, b"second")):
            stream.seek(place)
            stream.write(data)
        stream.truncate(3 << 30)
    os.link(folder / "holes", folder / "link")
    (folder / "small").write_bytes(b"small")
    words = ["tar", "-C", str(folder), "--format=pax", "--sparse", "--sort=name", "-cf", str(tmp_path / "a.tar"), "."]
    subprocess.run(words, check=True)
    return read_tar(tmp_path / "a.tar")


def test_holes_stay_holes(tmp_path: Path, holes: dict[str, Entry]) -> None:
    output = tmp_path / "o.tar"
    write_tar(holes.values(), output, epoch=EPOCH)
    assert output.stat().st_size < 1 << 20
    found = read_tar(output)
    content, small = found["holes"].content, found["small"].content
    assert content and content.size == 3 << 30 and small and small.read() == b"small"
    assert found["link"].content == content and usage(found.values()).blocks < 10
    data = {}
    for offset, length, place in content.extents():
        with output.open("rb") as stream:
            stream.seek(place)
            data[offset] = stream.read(length).rstrip(b"\0")
    assert data == {5 << 20: b"first", 2 << 30: b"second"}


def test_holes_are_written_as_zeros_unless_sparse_entries_are_wanted(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"end")
    subprocess.run(
        ["tar", "-C", str(tmp_path), "--format=pax", "--sparse", "-cf", str(tmp_path / "a.tar"), "f"], check=True
    )
    for name, more in (("out", False), ("sparse", True)):
        write_tar(read_tar(tmp_path / "a.tar").values(), tmp_path / name, epoch=EPOCH, holes=more)
        content = read_tar(tmp_path / name)["f"].content
        assert content and content.sparse is more and b"".join(content.pieces()) == bytes(1 << 20) + b"end"


def test_holes_written_as_zeros_use_no_disk_space(tmp_path: Path) -> None:
    """Some parts are copied by the kernel, some by Python, with holes at any place. A pipe gets the same bytes."""
    whole = tmp_path / "f"
    with whole.open("wb") as stream:
        for place, data in ((0, b"a" * 300_000), (20 << 20, b"b" * 200_000), (30 << 20, b"c"), (40 << 20, b"d" * 99)):
            stream.seek(place)
            stream.write(data)
        stream.truncate(50 << 20)
    words = ["tar", "-C", str(tmp_path), "--format=pax", "--sparse", "-cf", str(tmp_path / "a.tar"), "f"]
    subprocess.run(words, check=True)
    found = read_tar(tmp_path / "a.tar")
    assert found["f"].content and found["f"].content.sparse
    entries = [*found.values(), text_entry("g", "after it\n")]
    write_tar(entries, tmp_path / "out", epoch=EPOCH, holes=False)
    again = read_tar(tmp_path / "out")
    assert again["f"].content and b"".join(again["f"].content.pieces()) == whole.read_bytes()
    assert again["g"].content and again["g"].content.read() == b"after it\n"
    assert (tmp_path / "out").stat().st_size > 50 << 20 > (tmp_path / "out").stat().st_blocks * 512 * 25
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=(tmp_path / "piped").open("wb")) as pipe:
        assert pipe.stdin
        stream_tar(entries, pipe.stdin, epoch=EPOCH, holes=False)
    assert (tmp_path / "piped").read_bytes() == (tmp_path / "out").read_bytes()


def test_more_sources_than_a_process_may_open(tmp_path: Path) -> None:
    """Each file of a directory is a source of its own."""
    tree, output = tmp_path / "tree", tmp_path / "tree.tar"
    tree.mkdir()
    for number in range(400):
        (tree / f"{number}").write_text(f"content {number}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 100, limits[1]))
    try:
        write_tar(directory_entries(tree), output, epoch=EPOCH)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    contents = {name: entry.content.read() for name, entry in read_tar(output).items() if entry.content}
    assert contents == {f"{number}": f"content {number}".encode() for number in range(400)}
