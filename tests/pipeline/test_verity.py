"""The hash tree, and the word that carries the whole dm-verity table."""

import hashlib
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.images.verity import VerityParameters, fixed_salt, make_verity, verify

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


@pytest.mark.parametrize("blocks", [2, 128, 129, 20000])
def test_equal_to_a_second_implementation(tools: Path, tmp_path: Path, blocks: int) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"".join(number.to_bytes(4, "big") * 1024 for number in range(blocks)))
    found = make_verity(image, tmp_path / "tree", tmp_path / "roothash.txt", salt=SALT, tools=tools)
    root, area = tree(image.read_bytes(), bytes.fromhex(SALT))
    assert found == VerityParameters(data_blocks=blocks, root_hash=root.hex(), salt=SALT, hash_start=0)
    assert (tmp_path / "tree").read_bytes() == area
    assert (tmp_path / "roothash.txt").read_text() == f"{root.hex()}\n"
    assert found.word() == f"1:4096:4096:{blocks}:0:sha256:{root.hex()}:{SALT}"


@pytest.mark.parametrize("victim", ["image", "tree"])
def test_one_changed_byte_is_noticed(tools: Path, tmp_path: Path, victim: str) -> None:
    (tmp_path / "image").write_bytes(bytes(4096 * 300))
    files = tmp_path / "image", tmp_path / "tree"
    parameters = make_verity(*files, tmp_path / "r", salt=SALT, tools=tools)
    verify(*files, parameters, tools=tools)
    with (tmp_path / victim).open("r+b") as stream:
        stream.seek(4096 * 1 + 5)
        stream.write(b"\x01")
    with pytest.raises(UserError, match="veritysetup"):
        verify(*files, parameters, tools=tools)


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


def test_the_word_reads_back() -> None:
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
