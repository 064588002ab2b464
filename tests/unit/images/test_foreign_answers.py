# SPDX-License-Identifier: Apache-2.0
"""Answers of an appliance that has mounted a foreign disk, and so may be under its control."""

from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.images import foreign
from sevsnp.images.luks2 import Luks2
from sevsnp.keys.luks_key import Key
from sevsnp.qemu.appliance import Appliance
from sevsnp.volumes import boot
from tests.support.luks_volume import make_header

NOWHERE = Path("nowhere")
IMPORTED: dict[str, Any] = {"bytes": 5, "entries": 3, "root": "/dev/vda1", "notes": ["a note"]}
TABLES = {"crypt": "a", "integrity": "b", "tables": "c"}


def imported(answer: object, directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Import a disk with an appliance that gives this answer; the size of the tar."""
    image, output = directory / "disk.raw", directory / "root.tar"
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))
    monkeypatch.setattr(foreign, "run_job", lambda *_, **__: answer)
    foreign.import_image(
        image=image, root_device="", qemu=NOWHERE, kernel=NOWHERE, initrd=NOWHERE, probe_cache=NOWHERE, output=output
    )
    return output.stat().st_size


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"refused": 3, "hint": ""},
        {"refused": "why"},
        {"refused": "why", "hint": None},
        {"bytes": 5, "notes": []},
        *(IMPORTED | {name: value} for name, value in (("notes", 3), ("notes", [3]), ("notes", "ab"), ("entries", {}))),
        *(IMPORTED | {"bytes": value} for value in (0, -1, 1 << 60, True, 5.0, "5", None)),
    ],
    ids=repr,
)
def test_an_invalid_answer_to_an_import(answer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^IMAGE=.*disk.raw: the appliance gave an invalid answer$"):
        imported(answer, tmp_path, monkeypatch)
    # Control: the answers of our own code.
    assert imported(IMPORTED, tmp_path, monkeypatch) == IMPORTED["bytes"]
    with pytest.raises(UserError, match=r"disk.raw: no root") as refused:
        imported({"refused": "no root", "hint": "give one"}, tmp_path, monkeypatch)
    assert refused.value.hint == "give one"


@pytest.mark.parametrize("name", TABLES)
def test_an_invalid_answer_to_the_question_for_tables(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tables(answer: dict[str, Any]) -> str:
        monkeypatch.setattr(boot, "run_job", lambda *_, **__: answer)
        luks, appliance = Luks2.parse(make_header(b"key")), Appliance(NOWHERE, NOWHERE, NOWHERE, NOWHERE)
        return boot._tables(tmp_path / "luks.img", luks, tmp_path, Key(b"key", "a test"), appliance, tmp_path)

    monkeypatch.setattr(boot, "check_tables", lambda *_: None)
    for answer in (TABLES | {name: 3}, {key: value for key, value in TABLES.items() if key != name}):
        with pytest.raises(UserError, match=r"luks.img: the appliance gave an invalid answer$"):
            tables(answer)
    assert tables(TABLES) == "c"  # control
