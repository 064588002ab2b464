# SPDX-License-Identifier: Apache-2.0
"""sitecustomize.py of a process: the functions in WITNESS_OF write a line to WITNESS when they begin and end.

A generator function ends with its last value. If a process is killed inside a function, its ``+`` has no ``-``.
"""

import importlib.util
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

names: dict[str, list[str]] = defaultdict(list)
for line in os.environ.get("WITNESS_OF", "").split():
    names[line.partition(":")[0]].append(line.partition(":")[2])
looking: set[str] = set()


def note(text: str) -> None:
    descriptor = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, text.encode() + b"\n")
    os.close(descriptor)


def watched(shown: str, function: Callable[..., Iterable[str] | None]) -> Callable[..., Iterable[str] | None]:
    def ended(rest: Iterable[str]) -> Iterator[str]:
        yield from rest
        note(f"-{shown}")

    def call(*args: Any, **options: Any) -> Iterable[str] | None:
        note(f"+{shown}")
        found = function(*args, **options)
        if found is not None:
            return ended(found)
        note(f"-{shown}")
        return None

    return call


class Finder:
    """Finds the modules that the other finders find; watches the functions after the module is loaded."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in names or name in looking:
            return None
        looking.add(name)
        spec = importlib.util.find_spec(name)
        assert spec and spec.loader
        execute = spec.loader.exec_module

        def load(module: ModuleType) -> None:
            execute(module)
            for each in names[name]:
                setattr(module, each, watched(f"{name}:{each}", getattr(module, each)))

        spec.loader.exec_module = load  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder)  # type: ignore[arg-type, unused-ignore]
