# SPDX-License-Identifier: Apache-2.0
"""Finds every hint in the source: text that tells the user what to do, by module, with {} in place of values.

A hint is the ``hint`` or ``remedy`` of a call, by keyword or position. It is followed through parameters, variables and
constants to the string literals in the source. Every other string that names a command counts too, except docstrings.
"""

import ast
import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FOLDERS = ("sevsnp", "tasks", "initramfs")
NAMES = ("hint", "remedy")
# Commands that a user would run.
COMMAND = re.compile(
    r"\bdoit ([a-z]+_[a-z_]+|list|help|info|clean|forget|run|packages|manifest|idblock|initramfs|e2e|test)\b|\./doitw"
    r"|\brun( as root)?: (?!\{\})|\bapt-get (install|update)|\bchmod [0-7]|\brm [/{-]|\bopenssl |\bgit [a-z]+ "
)
_SHELL_LINE = re.compile(r"""\b(?:die|say) "([^"\n]*)"|\becho "doitw: ([^"\n]*)\"""")


@dataclass(frozen=True, order=True)
class Hint:
    """One text of the source; ``line`` is the place where it was first found."""

    module: str
    text: str
    line: int = field(compare=False, default=0)


class Unreadable(Exception):
    """A hint that is not a literal text of the source: it cannot have a row."""


Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """One parsed file, with the parent of each node, and the meaning of its names."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.tree = ast.parse(source)
        self.nodes = list(ast.walk(self.tree))
        self.calls = [node for node in self.nodes if isinstance(node, ast.Call)]
        self.parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}
        self.constants = {
            target.id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        self.imports: dict[str, tuple[str, str]] = {}
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = (node.module, alias.name)
        self.functions = {node.name: node for node in self.nodes if isinstance(node, Function)}
        self.classes = {node.name: node for node in self.nodes if isinstance(node, ast.ClassDef)}

    def around(self, node: ast.AST) -> Iterator[Function]:
        """The functions that enclose ``node``, the nearest first."""
        above = self.parents.get(node)
        while above is not None:
            if isinstance(above, Function):
                yield above
            above = self.parents.get(above)

    def values(self, name: str, node: ast.AST) -> list[ast.expr] | None:
        """The values assigned to ``name`` in the functions around ``node``; None if they do not assign it."""
        found: list[ast.expr] = []
        for function in self.around(node):
            for inner in ast.walk(function):
                if isinstance(inner, ast.Assign):
                    found += [inner.value for one in inner.targets if isinstance(one, ast.Name) and one.id == name]
                elif isinstance(inner, ast.NamedExpr) and inner.target.id == name:
                    found.append(inner.value)
                elif isinstance(inner, ast.For) and isinstance(inner.target, ast.Tuple):
                    found += _loop_values(inner, inner.target, name)
        return found or None

    def parameter(self, name: str, node: ast.AST) -> Function | None:
        """The function around ``node`` that has a parameter ``name``."""
        for function in self.around(node):
            if name in parameters(function):
                return function
        return None

    def called(self, call: ast.Call) -> tuple[str, str] | None:
        """The module and name of the called function, as far as the source shows them."""
        if isinstance(call.func, ast.Name):
            name = call.func.id
            if name in self.imports:
                return self.imports[name]
            return (self.name, name)
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            value = call.func.value.id
            if value == "self":
                return (self.name, call.func.attr)
            if value in self.imports:
                return (".".join(self.imports[value]), call.func.attr)
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "super().__init__":
            return self._base(call)
        return None

    def _base(self, node: ast.AST) -> tuple[str, str] | None:
        """The base class of the class around ``node``."""
        above = self.parents.get(node)
        while above is not None and not isinstance(above, ast.ClassDef):
            above = self.parents.get(above)
        if above is None or not above.bases or not isinstance(above.bases[0], ast.Name):
            return None
        name = above.bases[0].id
        return self.imports.get(name, (self.name, name))


def _loop_values(loop: ast.For, target: ast.Tuple, name: str) -> list[ast.expr]:
    names = [one.id if isinstance(one, ast.Name) else "" for one in target.elts]
    if name not in names or not isinstance(loop.iter, ast.Tuple | ast.List):
        return []
    return [row.elts[names.index(name)] for row in loop.iter.elts if isinstance(row, ast.Tuple)]


def parameters(function: Function) -> list[str]:
    every = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return every[1:] if every[:1] in (["self"], ["cls"]) else every


class Source:
    """All modules together, and which parameters are hints."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self.modules = {module.name: module for module in modules}
        # (module, function or class) to its parameters that are hints; all calls are searched for these.
        self.takes: dict[tuple[str, str], set[str]] = {}
        for module in self.modules.values():
            for function in module.functions.values():
                self._take(
                    module,
                    function,
                    {one.arg for one in ast.walk(function.args) if isinstance(one, ast.arg) and _is_hint(one)},
                )
            for node in module.classes.values():
                fields = {
                    ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign) and _is_hint(one)
                }
                self.takes.setdefault((module.name, node.name), set()).update(fields)
        while self._spread():
            pass

    def _take(self, module: Module, function: Function, names: set[str]) -> bool:
        owner = module.parents.get(function)
        name = owner.name if function.name == "__init__" and isinstance(owner, ast.ClassDef) else function.name
        known = self.takes.setdefault((module.name, name), set())
        new = names - known
        known |= names
        return bool(new)

    def _spread(self) -> bool:
        """Find parameters that are passed on as hints; return whether a new one was found."""
        grown = False
        for module, _, value in self._given():
            for node in ast.walk(value):
                if not isinstance(node, ast.Name) or not _whole(value, node) or module.values(node.id, value):
                    continue
                if function := module.parameter(node.id, value):
                    grown |= self._take(module, function, {node.id})
        return grown

    def _order(self, module: str, name: str) -> list[str]:
        """The parameters of a function or a class, in their order."""
        found = self.modules[module]
        if name in found.functions:
            return parameters(found.functions[name])
        for node in found.classes[name].body:
            if isinstance(node, Function) and node.name == "__init__":
                return parameters(node)
        fields = [one for one in found.classes[name].body if isinstance(one, ast.AnnAssign)]
        return [one.target.id for one in fields if isinstance(one.target, ast.Name)]

    def _given(self) -> Iterator[tuple[Module, ast.Call, ast.expr]]:
        """Every expression that a call gives as a hint."""
        for module in self.modules.values():
            for call in module.calls:
                called = module.called(call) or ("", "")
                takes = self.takes.get(called, set())
                yield from ((module, call, one.value) for one in call.keywords if one.arg in takes | set(NAMES))
                if takes:
                    order = self._order(*called)
                    for name, argument in zip(order, call.args, strict=False):
                        if name in takes:
                            yield module, call, argument

    def _defaults(self) -> Iterator[tuple[Module, ast.expr]]:
        """The defaults of parameters for hints."""
        for module in self.modules.values():
            for function in module.functions.values():
                places = function.args.posonlyargs + function.args.args
                rest = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
                pairs = [*zip(reversed(places), reversed(function.args.defaults), strict=False), *rest]
                yield from ((module, value) for one, value in pairs if value and _is_hint(one))

    def hints(self) -> Iterator[Hint]:
        for module, value in self._defaults():
            yield from self.texts(module, value, value.lineno)
        for module, call, value in self._given():
            yield from self.texts(module, value, call.lineno)

    def texts(self, module: Module, node: ast.expr, line: int) -> Iterator[Hint]:
        """The possible texts of an expression. Raises Unreadable if the source does not show them."""
        if isinstance(node, ast.Constant):
            if node.value:
                yield Hint(module.name, str(node.value), line)
        elif isinstance(node, ast.JoinedStr):
            yield Hint(module.name, literal(node), line)
        elif isinstance(node, ast.IfExp):
            yield from self.texts(module, node.body, line)
            yield from self.texts(module, node.orelse, line)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                yield from self.texts(module, value, line)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            sides = [list(self.texts(module, side, line)) for side in (node.left, node.right)]
            for left, right in itertools.product(*sides):
                yield Hint(module.name, left.text + right.text, line)
        elif isinstance(node, ast.Name):
            yield from self._named(module, node, line)
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            pass  # of an object that was created with it
        elif isinstance(node, ast.Call):
            yield from self._returned(module, node, line)
        else:
            raise Unreadable(f"{module.name}:{line}: {ast.unparse(node)}")

    def _named(self, module: Module, node: ast.Name, line: int) -> Iterator[Hint]:
        if (values := module.values(node.id, node)) is not None:
            for value in values:
                yield from self.texts(module, value, line)
        elif module.parameter(node.id, node):
            pass  # the callers' arguments are hints themselves
        elif node.id in module.constants:
            yield from self.texts(module, module.constants[node.id], module.constants[node.id].lineno)
        elif module.imports.get(node.id, ("",))[0] in self.modules:
            place, name = module.imports[node.id]
            value = self.modules[place].constants[name]
            yield from self.texts(self.modules[place], value, value.lineno)
        else:
            raise Unreadable(f"{module.name}:{line}: {node.id}")

    def _returned(self, module: Module, call: ast.Call, line: int) -> Iterator[Hint]:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "get" and isinstance(call.func.value, ast.Name):
            for entry in ast.walk(module.constants[call.func.value.id]):
                if isinstance(entry, ast.Call):
                    yield from self.texts(module, entry.args[1], entry.lineno)
            return
        if isinstance(call.func, ast.Name) and call.func.id in ("printable", "str"):
            return  # from the appliance, whose source is also searched
        name = module.called(call)
        if name is None or name[0] not in self.modules or name[1] not in self.modules[name[0]].functions:
            raise Unreadable(f"{module.name}:{line}: {ast.unparse(call)}")
        place = self.modules[name[0]]
        for node in ast.walk(place.functions[name[1]]):
            if isinstance(node, ast.Return) and node.value:
                yield from self.texts(place, node.value, node.lineno)

    def commands(self) -> Iterator[Hint]:
        """Every string that names a command, wherever it is."""
        for module in self.modules.values():
            for node in module.nodes:
                above = module.parents.get(node)
                if isinstance(above, ast.Expr | ast.JoinedStr | ast.FormattedValue):
                    continue  # a docstring, or part of a text
                text = ""
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = node.value
                elif isinstance(node, ast.JoinedStr):
                    text = literal(node)
                if COMMAND.search(text):
                    yield Hint(module.name, text, getattr(node, "lineno", 0))


def _is_hint(node: ast.AST) -> bool:
    """Whether a node is a parameter or a field for a hint, by its name and its type."""
    name = (
        node.arg if isinstance(node, ast.arg) else ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else ""
    )
    return name in NAMES and ast.unparse(node.annotation or ast.Constant("str")) == "str"  # type: ignore[attr-defined]


def _whole(value: ast.expr, node: ast.Name) -> bool:
    """Whether ``node`` can be the whole of ``value``, not only a value inside a text."""
    if isinstance(value, ast.IfExp):
        return node in (value.body, value.orelse)
    return node is value or (isinstance(value, ast.BoolOp) and node in value.values)


def literal(node: ast.JoinedStr) -> str:
    """The text of an f-string, with {} in place of its values."""
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def python_sources() -> dict[str, str]:
    files = [path for folder in FOLDERS for path in sorted((PROJECT / folder).rglob("*.py"))]
    files += [PROJECT / name for name in ("dodo.py", "initramfs/init")]
    names = {path: path.relative_to(PROJECT).with_suffix("").as_posix().replace("/", ".") for path in files}
    return {names[path].removesuffix(".__init__"): path.read_text(encoding="utf-8") for path in files}


def hints_of(sources: dict[str, str]) -> set[Hint]:
    """All hints of Python ``sources``, by module name."""
    source = Source(Module(name, text) for name, text in sources.items())
    found: dict[Hint, Hint] = {}
    for hint in (*source.hints(), *source.commands()):
        found.setdefault(hint, hint)
    return set(found.values())


def shell_hints(name: str, text: str) -> set[Hint]:
    """The messages of a shell script to its user: each ``die`` and ``say``, with {} for its variables."""
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        for match in _SHELL_LINE.finditer(line):
            said = re.sub(r"\$\{[^}]*\}|\$\([^)]*\)?|\$\w+|\$[@*]", "{}", match[1] or match[2])
            found.add(Hint(name, said, number))
    return found


@functools.cache
def all_hints() -> frozenset[Hint]:
    """Every hint of this checkout."""
    shell = set[Hint]()
    for name in ("doitw", "templates/bundle-run"):
        shell |= shell_hints(name, (PROJECT / name).read_text(encoding="utf-8"))
    return frozenset(hints_of(python_sources()) | shell)


if __name__ == "__main__":
    for one in sorted(all_hints()):
        print(f"{one.module}:{one.line}: {one.text}")
