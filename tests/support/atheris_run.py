# SPDX-License-Identifier: Apache-2.0
"""Runs one parser under atheris. A program of its own, because libFuzzer ends the process:

    python -m tests.support.atheris_run NAME DIRECTORY [libFuzzer's options]

NAME is one of fuzz_targets; DIRECTORY keeps the inputs, and those that break the parser.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sevsnp", "json", "tomllib"]):
    from tests.support.fuzz_targets import TARGETS


def main(name: str, directory: str, *options: str) -> None:
    corpus = Path(directory, name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = [sys.argv[0], f"-artifact_prefix={directory}/{name}-", "-max_len=20000", *options, str(corpus)]
    atheris.Setup(words, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
