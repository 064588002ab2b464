# SPDX-License-Identifier: Apache-2.0
"""The hash tree, and the word that carries the whole dm-verity table."""

import hashlib
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.images.hash_tree import HashTree
from sevsnp.images.verity import make_verity
from sevsnp.vm_config.verity_word import VerityParameters, fixed_salt

ROOT, SALT = "a" * 64, fixed_salt("test")


def tree(data: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """Root hash and hash area as the kernel's documentation describes them: the second implementation."""

    def digest(block: bytes) -> bytes:
        return hashlib.sha256(salt + block).digest()

    levels, level = [], data
    while len(level) > 4096:
        hashes = b"".join(digest(level[at : at + 4096]) for at in range(0, len(level), 4096))
        level = hashes + bytes(-len(hashes) % 4096)
        levels.append(level)
    return digest(level), b"".join(reversed(levels))


@pytest.mark.parametrize("blocks", [1, 2, 128, 129, 20000])
def test_the_hash_tree_is_that_of_a_second_implementation(tools: Path, tmp_path: Path, blocks: int) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"".join(number.to_bytes(4, "big") * 1024 for number in range(blocks)))
    found = make_verity(image, tmp_path / "tree", tmp_path / "roothash.txt", salt=SALT, tools=tools)
    root, area = tree(image.read_bytes(), bytes.fromhex(SALT))
    assert found == VerityParameters(data_blocks=blocks, root_hash=root.hex(), salt=SALT, hash_start=0)
    assert (tmp_path / "tree").read_bytes() == area
    assert (tmp_path / "roothash.txt").read_text() == f"{root.hex()}\n"
    assert found.word() == f"1:4096:4096:{blocks}:0:sha256:{root.hex()}:{SALT}"


def damaged_by(tools: Path, where: Path, place: int) -> Path:
    """Tools whose veritysetup, when it is done, changes one byte of the tree."""
    where.mkdir()
    program = where / "veritysetup"
    program.write_text(
        f'#!/bin/sh\n{tools}/veritysetup "$@" || exit\n'
        f'for tree; do :; done; printf X | dd of="$tree" bs=1 seek={place} conv=notrunc status=none\n'
    )
    program.chmod(0o755)
    return where


@pytest.mark.parametrize("place", [0, 31, 40, 4100, 3 * 4096 + 44 * 32 - 1, 4 * 4096 - 1, 4 * 4096])
def test_a_wrong_hash_tree_of_veritysetup_is_noticed(
    tools: Path, tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image").write_bytes(bytes(4096 * 300))
    bad = damaged_by(tools, tmp_path / "tools", place)

    def made() -> VerityParameters:
        return make_verity(tmp_path / "image", tmp_path / "tree", tmp_path / "r", salt=SALT, tools=bad)

    with pytest.raises(UserError, match="hash tree of its image"):
        made()
    assert not (tmp_path / "r").exists()
    # Control: unchecked, it would pass for the image's tree.
    monkeypatch.setattr(HashTree, "check", lambda *_: None)
    made()
    assert (tmp_path / "tree").read_bytes() != tree(bytes(4096 * 300), bytes.fromhex(SALT))[1]


def test_a_wrong_root_hash_is_noticed(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(4096 * 300))
    other = tmp_path / "tools" / "veritysetup"
    other.parent.mkdir()
    other.write_text(f'#!/bin/sh\n{tools}/veritysetup "$@" | tr 0-9 1-90\n')
    other.chmod(0o755)
    with pytest.raises(UserError, match=r"root hash \w+ by veritysetup, expected"):
        make_verity(tmp_path / "image", tmp_path / "t", tmp_path / "r", salt=SALT, tools=other.parent)


def test_a_failure_of_veritysetup_ends_the_second_computation(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as stream:
        stream.truncate(1 << 40)  # hours
    (tmp_path / "veritysetup").write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    (tmp_path / "veritysetup").chmod(0o755)
    with pytest.raises(UserError, match="broken"):
        make_verity(tmp_path / "image", tmp_path / "t", tmp_path / "r", salt=SALT, tools=tmp_path)


@pytest.mark.parametrize("size", [0, 4095, 4097])
def test_odd_images_are_refused(tools: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "image").write_bytes(bytes(size))
    with pytest.raises(UserError, match=f"{size} bytes, expected a positive multiple of 4096"):
        make_verity(tmp_path / "image", tmp_path / "t", tmp_path / "r", salt=SALT, tools=tools)


@pytest.mark.parametrize("salt", ["", "0" * 63, "A" * 64, "-" * 64])
def test_odd_salts_are_refused(tools: Path, tmp_path: Path, salt: str) -> None:
    (tmp_path / "image").write_bytes(bytes(4096))
    with pytest.raises(UserError, match="verity salt"):
        make_verity(tmp_path / "image", tmp_path / "t", tmp_path / "r", salt=salt, tools=tools)


def test_the_word_is_parsed_to_the_same_parameters() -> None:
    parameters = VerityParameters(data_blocks=7, root_hash=ROOT, salt=SALT, hash_start=0)
    assert VerityParameters.parse(parameters.word()) == parameters


@pytest.mark.parametrize(
    "word",
    [
        "",
        f"1:4096:4096:7:0:sha256:{ROOT}",
        f"0:4096:4096:7:0:sha256:{ROOT}:{SALT}",
        f"1:512:4096:7:0:sha256:{ROOT}:{SALT}",
        f"1:4096:4096:0:0:sha256:{ROOT}:{SALT}",
        f"1:4096:4096:07:0:sha256:{ROOT}:{SALT}",
        f"1:4096:4096:7:-1:sha256:{ROOT}:{SALT}",
        f"1:4096:4096:7:0:sha1:{ROOT}:{SALT}",
        f"1:4096:4096:7:0:sha256:{ROOT[1:]}:{SALT}",
        f"1:4096:4096:7:0:sha256:{ROOT.upper()}:{SALT}",
        f"1:4096:4096:7:0:sha256:{ROOT}:{SALT}\n",
        f"1:4096:4096:7:0:sha256:{ROOT}:{SALT}:ignore_corruption",
    ],
)
def test_malformed_words_are_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"sevsnp\.verity="):
        VerityParameters.parse(word)
