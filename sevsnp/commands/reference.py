# SPDX-License-Identifier: Apache-2.0
"""Make docs/commands.md from the commands' own parsers.

Run it with `.venv/bin/python -m sevsnp.commands.reference >docs/commands.md`.
The page is made from the parsers' actions, because argparse's help text differs between versions of Python.
"""

import argparse
import importlib
import importlib.util
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_WIDTH = 120
_HEAD = """\
# Commands

The task `build_tools` writes these commands to `build/bin`. All but `get_report` and `get_report_emulated` run in the
project's environment, on the owner's machine; `sev-feature-info` runs on an SNP host, which needs a checkout for it.
`get_report` and `get_report_emulated` are each one file for any Python from 3.8 on, to be copied into a guest.
[attestation.md](attestation.md) says what a verdict means, [id-block.md](id-block.md) what launch digests and ID blocks
are. This page is made from the commands' own parsers (`sevsnp/commands/reference.py`).

"""
_EVIDENCE = """\
Evidence that is wrong ends with 2, whatever is wrong in it: a report that is truncated, too long or in no known form,
certificates that cannot be read, a signature that does not fit. 3 means that the verifier could not get a statement of
AMD. 64 is the caller's mistake: the command line, a file that is missing, the VM config, the policy. With `--json` each
of them prints a JSON document with `checks`; for 64 it has `error`, and the list is empty.

"""
_DOITW = """\
`doitw` itself ends with 0 where all went well, 1 where a task failed (a refused guest is one) or the machine lacks
something, 2 where an error in a task's code ended it, 3 for a wrong command line or setting, and 128 + N where signal N
ended it. Its `list` and `help TASK` have the tasks, [settings.md](settings.md) has the settings.
"""


@dataclass(frozen=True)
class Command:
    """A command of build/bin: its parser, an example of its options, and further text."""

    parser: argparse.ArgumentParser
    example: str
    more: str = ""

    @property
    def name(self) -> str:
        return self.parser.prog

    def exits(self) -> dict[int, str]:
        """The meaning of each exit code, from the end of the command's help."""
        return {int(code): words for code, words in re.findall(r"(\d+) ([^,]+)", self.parser.epilog or "")}


def commands() -> list[Command]:
    """All commands, in the order in which evidence passes through them. Needs a checkout for the guest's get_report."""
    expected = "--input report.json --vm_definition build/verity/vm-config-verity.toml"
    bound = f"--nonce {'1f' * 32} --host-key ssh_host_ed25519_key.pub"
    return [
        Command(
            _get_report(),
            f"--nonce {'1f' * 32} -o report.json",
            "`get_report_emulated` is the same for an emulated guest; the name of its `-o` must have `emulated` in it.",
        ),
        Command(_parser("verify_report"), f"{expected} {bound}"),
        Command(
            _parser("verify_report_emulated"),
            "--input report.emulated.json --vm_definition build/verity/vm-config-verity.emulated.toml "
            f"--root build/run/verity/ark.pem {bound}",
        ),
        Command(_parser("inspect_report"), "--input report.json --offline"),
        Command(_parser("measure"), "--vm-config build/verity/vm-config-verity.toml"),
        Command(
            _parser("idblock_generator"),
            "--vm-config build/verity/vm-config-verity.toml --id-key-path id.pem --auth-key-path author.pem",
        ),
        Command(_parser("feature_info"), "--json"),
        Command(
            _parser("tcb_floors"),
            "--input report.json --key owner.pem --expires 2026-12-31 -o tcb-floors.json",
            "A policy takes the file with `tcb_floors`: [policy.md](policy.md).",
        ),
    ]


def _parser(module: str) -> argparse.ArgumentParser:
    # Load each module only when it is needed, because only one command may load the emulation.
    found = importlib.import_module(f"sevsnp.commands.{module}").command_line()
    assert isinstance(found, argparse.ArgumentParser)
    return found


def _get_report() -> argparse.ArgumentParser:
    # get_report is in no package: the guest's layer contains it as a single file.
    path = Path(__file__).resolve().parents[2] / "initramfs" / "get_report.py"
    spec = importlib.util.spec_from_file_location("get_report", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.command_line()
    assert isinstance(found, argparse.ArgumentParser)
    return found


def render_reference() -> str:
    """The page as text."""
    known = commands()
    return "\n".join([_HEAD + _exit_codes(known), *(_section(command) for command in known)]).rstrip() + "\n"


def _exit_codes(known: list[Command]) -> str:
    codes = sorted({code for command in known for code in command.exits()})
    lines = ["## Exit codes", "", f"| command | {' | '.join(map(str, codes))} |", "|---" * (len(codes) + 1) + "|"]
    for command in known:
        lines.append(f"| `{command.name}` | {' | '.join(command.exits().get(code, '') for code in codes)} |")
    return "\n".join([*lines, "", _EVIDENCE + _DOITW])


def _section(command: Command) -> str:
    parser = command.parser
    lines = [f"## {command.name}", "", *textwrap.wrap(_plain(parser.description or ""), _WIDTH), ""]
    lines += _typed([f"build/bin/{command.name}", *_needed(parser), "[OPTION …]"])
    lines += ["", "| option | what it is |", "|---|---|"]
    lines += [_row(action) for action in parser._actions if action.dest != "help"]
    # Keep an option and its value on one line.
    words = re.findall(r"--?\S+(?: [^-\s]\S*)?", command.example)
    lines += ["", "For example:", "", *_typed([f"build/bin/{command.name}", *words]), ""]
    return "\n".join([*lines, *([command.more, ""] if command.more else [])])


def _typed(words: list[str]) -> Iterator[str]:
    """A shell command, on as many lines as it needs."""
    line = f"    {words[0]}"
    for word in words[1:]:
        if len(line) + len(word) > _WIDTH - 3:
            yield f"{line} \\"
            line = f"        {word}"
        else:
            line = f"{line} {word}"
    yield line


def _needed(parser: argparse.ArgumentParser) -> list[str]:
    """The required options of a command, and its groups of options that exclude each other."""
    grouped = [action for group in parser._mutually_exclusive_groups for action in group._group_actions]
    words = [_called(action) for action in parser._actions if action.required and action not in grouped]
    for group in parser._mutually_exclusive_groups:
        choice = " | ".join(_called(action) for action in group._group_actions)
        words.append(f"({choice})" if group.required else f"[{choice}]")
    return words


def _called(action: argparse.Action, name: str = "") -> str:
    """One name of an option with its value, as the user types it."""
    if action.nargs == 0:
        return name or action.option_strings[0]
    value = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
    return f"{name or action.option_strings[0]} {value}"


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{_called(action, name)}`" for name in action.option_strings)
    text = (action.help or "") % {"default": action.default}
    cells = (names, f"{text}{' (required)' if action.required else ''}")
    return f"| {' | '.join(_plain(cell.replace('|', chr(92) + '|')) for cell in cells)} |"


def _plain(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    print(render_reference(), end="")
