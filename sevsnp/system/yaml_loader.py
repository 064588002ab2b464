# SPDX-License-Identifier: Apache-2.0
"""Reads YAML files strictly, and with the C library's parser if PyYAML has it (ten times as fast); and writes YAML.

A doubled key is an error. PyYAML would silently keep the last value: a list of switched-off things would lose its
first half. A merge key is an error too, because it hides where a value comes from.
"""

import functools
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError


@functools.cache
def strict_loader() -> Any:
    """A safe loader class for yaml.load and yaml.compose.

    It should be fast: doit reads several lists for every command.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Strict(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                problem = ""
                if not isinstance(key, yaml.ScalarNode):
                    problem = "a key that is not plain text"
                elif key.tag == "tag:yaml.org,2002:merge":
                    problem = "a merge key (<<): write the values out"
                elif key.value in seen:
                    problem = f"{key.value} is given twice"
                if problem:
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                found = super().construct_object(node, deep)
                if isinstance(found, int) and found.bit_length() > 64:  # Python cannot print one of any size
                    raise ValueError("an integer of more than 64 bits")
            except (ValueError, LookupError, AttributeError) as error:  # of int(), date() and others, for a scalar
                problem = f"a value that cannot be read: {str(error).split(';')[0]:.200}"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
            return found

    return Strict


def load(file: Path, expected: str = "a YAML file") -> Any:
    """The single document in ``file``, as PyYAML's plain types. Raises UserError naming the file and the line."""
    import yaml

    try:
        return yaml.load(file.read_text(encoding="utf-8"), strict_loader())  # noqa: S506 (a safe one)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file, expected {expected}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not YAML: not UTF-8: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        kind = "not YAML: " if isinstance(error, (yaml.parser.ParserError, yaml.scanner.ScannerError)) else ""
        raise UserError(f"{file}: {kind}{line}{error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML: {str(error).splitlines()[0]}") from error


def dump(document: Any) -> str:
    """``document``, of PyYAML's plain types, as a YAML text that :func:`load` reads as the same document."""
    import yaml

    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1 << 16)
