# SPDX-License-Identifier: Apache-2.0
"""Files that a document names: no file outside of the project is read, whatever its name."""

import os
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.release.contents import Contents, ContentsError, check_name
from sevsnp.system.files import sha256_file

SECRET = b"what lies outside"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a file, and a file outside it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(SECRET)
    root = tmp_path / "project"
    (root / "build" / "tree" / "inner").mkdir(parents=True)
    (root / "build" / "file").write_bytes(b"inside")
    (root / "build" / "tree" / "inner" / "a").write_bytes(b"a")
    (root / "build" / "tree" / "b").write_bytes(b"b")
    return root


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside/file", "build/../../outside/file", "build/..", ".", "..", "", "build//file", "build/",
     "./build/file", "build/./file", "build\n/file", "build/\x1b[2Jfile", "build/\0file", "build/\ud800"],
)  # fmt: skip
def test_a_path_that_leads_out_or_is_ambiguous_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="expected one below the project"):
        check_name(name, "artefacts")


def test_a_plain_path_is_taken(project: Path) -> None:
    assert check_name("build/file", "artefacts") == "build/file"
    assert Contents(project).describe("build/file") == {"size": 6, "sha256": sha256_file(project / "build/file")}
    assert Contents(project).read("build/file", sha256_file(project / "build/file"), 6) == b"inside"


def test_a_link_on_the_way_is_not_followed(project: Path) -> None:
    (project / "build" / "link").symlink_to(project.parent / "outside")
    # What the defence is against: to any other reader it is just a file below the project.
    assert (project / "build/link/file").read_bytes() == SECRET
    with pytest.raises(ContentsError, match="link: expected a directory, not a symbolic link"):
        Contents(project).describe("build/link/file")
    with pytest.raises(ContentsError, match="expected a directory, not a symbolic link"):
        Contents(project).below("build/link")


def test_a_link_in_place_of_a_file_is_described_as_a_link(project: Path) -> None:
    target = project.parent / "outside" / "file"
    (project / "build" / "link").symlink_to(target)
    assert sha256_file(project / "build/link") == sha256_file(target)
    assert Contents(project).describe("build/link") == {"link": str(target)}
    with pytest.raises(ContentsError):
        Contents(project).read("build/link", sha256_file(target), 100)


def test_the_project_itself_may_be_reached_by_a_link(project: Path) -> None:
    (project.parent / "short").symlink_to(project)
    assert Contents(project.parent / "short").describe("build/file")["size"] == 6


def test_a_pipe_a_directory_and_a_missing_file_are_refused_at_once(project: Path) -> None:
    os.mkfifo(project / "build" / "pipe")
    for name in ("build/pipe", "build/tree"):
        with pytest.raises(ContentsError, match="expected a file"):
            Contents(project).describe(name)
    for name in ("build/none", "none/file"):
        with pytest.raises(ContentsError, match="missing"):
            Contents(project).describe(name)
    with pytest.raises(ContentsError, match="expected a directory"):
        Contents(project).describe("build/file/inner")


def test_a_file_of_another_size_is_not_read(project: Path) -> None:
    with (project / "build" / "huge").open("wb") as stream:
        stream.truncate(1 << 42)
    assert Contents(project).describe("build/huge", 5) == {"size": 1 << 42}


def test_the_size_of_a_file_is_limited_and_its_digest_compared(project: Path) -> None:
    digest = sha256_file(project / "build/file")
    with pytest.raises(ContentsError, match="more than 5 bytes"):
        Contents(project).read("build/file", digest, 5)
    (project / "build" / "file").write_bytes(b"INSIDE")
    with pytest.raises(ContentsError, match="changed while"):
        Contents(project).read("build/file", digest, 6)


def test_all_files_below_a_directory_are_listed(project: Path) -> None:
    tree = project / "build" / "tree"
    (tree / "to-directory").symlink_to(project.parent / "outside")
    (tree / "to-nothing").symlink_to("nowhere")
    os.mkfifo(tree / "pipe")
    assert Contents(project).below("build/tree") == [
        f"build/tree/{name}" for name in ("b", "inner/a", "pipe", "to-directory", "to-nothing")
    ]
    with pytest.raises(ContentsError, match="missing"):
        Contents(project).below("build/none")
