# SPDX-License-Identifier: Apache-2.0
"""Finds in a source file's syntax tree the functions with which it starts processes."""

import ast

# Functions that start a process or become another program, by module; () stands for every function of the module.
_STARTERS = {
    "subprocess": ("run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"),
    "os": ("fork", "forkpty", "system", "popen", "posix_spawn", "posix_spawnp", "startfile"),
    "pty": ("fork", "spawn"),
    "asyncio": ("create_subprocess_exec", "create_subprocess_shell"),
    "multiprocessing": (),
    "plumbum": (),
    "pexpect": (),
}
_FAMILIES = {"os": ("exec", "spawn")}
# Attributes that start a process on any object: plumbum's commands, an event loop.
_ANYWHERE = ("popen", "subprocess_exec", "subprocess_shell", "ProcessPoolExecutor")


def _starts(module: str, name: str) -> bool:
    root = module.partition(".")[0]
    if root not in _STARTERS:
        return name in _ANYWHERE
    names = _STARTERS[root]
    return not names or name in names or name.startswith(_FAMILIES.get(root, ("\0",)))


def process_starts(source: str) -> set[str]:
    """``module.function`` for each way in which ``source`` starts processes, under any imported name."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name.partition(".")[0]] = alias.name
                root = alias.name.partition(".")[0]
                if root in _STARTERS and not _STARTERS[root]:
                    found.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names if _starts(node.module, alias.name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        module = modules.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
        if _starts(module, node.attr):
            found.add(f"{module}.{node.attr}".lstrip("."))
    # A type in an annotation that is a string is not a start; this project writes evaluated ones as strings.
    return found
