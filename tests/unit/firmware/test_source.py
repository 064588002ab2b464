# SPDX-License-Identifier: Apache-2.0
"""Our firmware from source: the prepared tree, the script that builds it, and the inputs that are refused."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.firmware import source
from sevsnp.firmware.changes import read_changes
from sevsnp.firmware.known import ACCEPTED, OURS_FROM_SOURCE, REFUSED
from sevsnp.firmware.source import LEFT_OUT, PARTS, build_firmware, check_made, prepare_tree
from tests.conftest import PROJECT

SCRIPT = PROJECT / "templates/packages/ovmf.sh"
TABLE = PROJECT / "templates/firmware/changes.yaml"
PATCH = b"--- a/MdePkg/f\n+++ b/MdePkg/f\n@@ -1 +1 @@\n-old\n+patched\n"
CHANGES = "- {file: MdePkg/f, old: patched, new: changed}\n"


def archive(path: Path, files: dict[str, bytes], *links: tuple[str, str]) -> None:
    with tarfile.open(path, "w:xz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    directory = tmp_path / "sources"
    directory.mkdir()
    files = {f"edk2-1/{part}/f": b"old\n" for part in PARTS}
    files |= {"edk2-1/ArmPkg/f": b"x", **{f"edk2-1/{part}/f": b"x" for part in LEFT_OUT}}
    archive(directory / "edk2_1.orig.tar.xz", files, ("edk2-1/MdePkg/link", "/etc"))
    archive(
        directory / "edk2_1-1.debian.tar.xz",
        {"debian/patches/series": b"one.patch\n", "debian/patches/one.patch": PATCH, "debian/rules": b""},
    )
    (tmp_path / "changes.yaml").write_text(CHANGES)
    return directory


def prepared(sources: Path) -> Path:
    tree = sources.parent / "tree"
    prepare_tree(sources=sources, changes=sources.parent / "changes.yaml", output=tree)
    return tree


def test_debian_s_patches_come_before_our_changes(sources: Path) -> None:
    tree = prepared(sources)
    assert (tree / "MdePkg/f").read_text() == "changed\n"
    assert sorted(path.name for path in tree.iterdir()) == sorted(PARTS)
    assert not any((tree / part).exists() for part in LEFT_OUT) and not (tree / "MdePkg/link").is_symlink()
    assert [path.name for path in sources.parent.iterdir() if path.name.startswith("tree")] == ["tree"]


def test_an_upstream_that_has_changed_is_refused(sources: Path) -> None:
    """First by Debian's patch; if the patch still applies, by our table of changes."""
    files = {f"edk2-1/{part}/f": b"other\n" for part in PARTS}
    archive(sources / "edk2_1.orig.tar.xz", files)
    with pytest.raises(UserError, match="MdePkg/f: hunk 1 does not apply: the patch is for another source"):
        prepared(sources)
    archive(sources / "edk2_1-1.debian.tar.xz", {"debian/patches/series": b""})
    (sources.parent / "tree").rename(sources.parent / "first")
    with pytest.raises(UserError, match="MdePkg/f: found 0 times, expected once: 'patched'"):
        prepared(sources)


def test_damaged_and_missing_archives_are_named(sources: Path) -> None:
    original = sources / "edk2_1.orig.tar.xz"
    data = original.read_bytes()
    original.write_bytes(data[:100])
    with pytest.raises(UserError, match=r"edk2_1\.orig\.tar\.xz: damaged archive"):
        prepared(sources)
    (sources.parent / "tree").rename(sources.parent / "first")
    archive(original, {"edk2-1/MdePkg/f": b"old\n"})
    with pytest.raises(UserError, match=r"has no BaseTools, .*: not the expected source"):
        prepared(sources)
    original.unlink()
    with pytest.raises(UserError, match=r"found 0 files \*\.orig\.tar\.\*, expected one"):
        prepared(sources)


def test_no_member_of_an_archive_is_written_outside_the_tree(sources: Path) -> None:
    files = {f"edk2-1/{part}/f": b"old\n" for part in PARTS}
    archive(sources / "edk2_1.orig.tar.xz", {**files, "edk2-1/MdePkg/../../f": b"hostile"})
    with pytest.raises(UserError, match="damaged archive"):
        prepared(sources)
    assert not (sources.parent / "f").exists()


def test_the_project_s_own_table_can_be_read() -> None:
    assert len(read_changes(TABLE)) > 20


def script(tmp_path: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", str(SCRIPT)],
        env={"PATH": os.environ["PATH"], **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )


def test_the_script_names_missing_inputs(tmp_path: Path) -> None:
    done = script(tmp_path)
    assert (done.returncode, done.stderr) == (2, "ovmf.sh: SOURCES is not set\n")
    given = {"SOURCES": str(tmp_path), "WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out")}
    done = script(tmp_path, **given)
    assert (done.returncode, done.stderr) == (2, f"ovmf.sh: {tmp_path}: no source tree of edk2\n")
    platform = tmp_path / "OvmfPkg/AmdSev/AmdSevX64.dsc"
    platform.parent.mkdir(parents=True)
    platform.touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bash").symlink_to("/bin/bash")
    done = script(tmp_path, **given, PATH=str(tmp_path / "bin"))
    assert (done.returncode, done.stderr) == (2, "ovmf.sh: gcc: command not found\n")
    assert not (tmp_path / "out").exists() and not (tmp_path / "work").exists()


def test_a_build_in_the_same_directory_has_the_same_names(tmp_path: Path) -> None:
    """A compiler cache finds nothing under other names, and a name of another length is another result."""
    sources, programs, work = (tmp_path / name for name in ("sources", "bin", "work"))
    for name in ("OvmfPkg/AmdSev/AmdSevX64.dsc", "BaseTools/BinWrappers/PosixLike/build",
                 *(f"BaseTools/Conf/{name}.template" for name in ("build_rule", "tools_def", "target"))):  # fmt: skip
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).touch()
    programs.mkdir()
    for name in ("gcc", "nasm", "iasl", "make"):
        (programs / name).write_text(
            f'#!/bin/sh\necho "$3" >>{tmp_path}/named\n{{ [ -z "$KILL" ] || kill -9 $PPID; }}\n'
        )
        (programs / name).chmod(0o755)

    def named(work: Path, kill: str = "") -> Path:
        """The directory that the build sees as ``work``."""
        done = script(
            tmp_path, SOURCES=str(sources), WORK=str(work), OUT=str(tmp_path / "out"), CONFIGURE_ONLY="yes", KILL=kill,
            PATH=f"{programs}:{os.environ['PATH']}",
        )  # fmt: skip
        assert done.returncode == (-9 if kill else 0), done.stderr
        return Path((tmp_path / "named").read_text().splitlines()[-1].removesuffix("/BaseTools/Source/C"))

    first = named(work)
    assert named(work) == first and not first.parent.exists()
    assert named(work, kill="yes") == first and first.readlink() == work
    assert named(work) == first and not first.parent.exists()  # what the killed build left is no obstacle
    others = [named(tmp_path / f"work{number}") for number in range(3)]
    assert {len(str(other)) for other in others} == {len(str(first))} and set(others) != {first}
    # Somebody else's directory of this name is left alone.
    first.parent.mkdir()
    try:
        (first.parent / "w").symlink_to(tmp_path / "elsewhere")
        other = named(work)
        assert other != first and len(str(other)) == len(str(first)) and (first.parent / "w").is_symlink()
    finally:
        (first.parent / "w").unlink()
        first.parent.rmdir()


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "find", lambda name: None if name == "iasl" else Path("/bin/true"))
    with pytest.raises(UserError, match="iasl: command not found") as refused:
        build_firmware(tree=tmp_path, script=SCRIPT, work=tmp_path / "work", output=tmp_path / "out")
    assert refused.value.hint == "run: apt-get install acpica-tools"


def test_the_script_gets_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local build runs the same script, with this machine's tools."""
    monkeypatch.setattr(source, "find", lambda name: Path("/bin/true"))
    monkeypatch.chdir(tmp_path)
    stand_in = tmp_path / "stand-in.sh"
    stand_in.write_text('echo "$SOURCES $WORK $JOBS" >"$OUT"\n')
    build_firmware(tree=Path("tree"), script=stand_in, work=Path("work"), output=Path("out"), jobs=3)
    assert (tmp_path / "out").read_text() == f"{tmp_path}/tree {tmp_path}/work 3\n"


def test_a_result_with_another_digest_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "OVMF.fd"
    made.write_bytes(b"x")
    with pytest.raises(UserError, match=f"built with SHA-256 .*, expected {OURS_FROM_SOURCE}"):
        check_made(made)


def test_our_build_is_an_accepted_firmware() -> None:
    assert OURS_FROM_SOURCE in ACCEPTED and OURS_FROM_SOURCE not in REFUSED
