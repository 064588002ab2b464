# SPDX-License-Identifier: Apache-2.0
"""Mutants of the verifier: which changes of a module does no test notice? A tool, not a part of any test run.

    python -m tests.support.mutations revocation kds_cache [--sample 40] [--tests FILE …]

For each mutant (one changed comparison, condition, number or statement of a module of sevsnp/attestation) the module's
unit tests run until the first failure. The survivors are printed with their place and change. Each has to be judged: a
test may be missing, or the change makes no difference.

Each run is a forked process that imports the project anew, with the changed module in place of the file. Slow things
that depend on nothing, such as RSA keys, are made once. A run is limited by processor time.
"""

import argparse
import ast
import atexit
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

ROOT = Path(__file__).parents[2]
PACKAGE = "sevsnp.attestation"
UNIT = "tests/unit/attestation"
# The tests of each module, the quickest to notice a change first. Modules that are not here: all of DEFAULT.
DEFAULT = (f"{UNIT}/test_forged_reports.py", f"{UNIT}/test_certificates.py", f"{UNIT}/test_kds.py")
TESTS: dict[str, tuple[str, ...]] = {
    "authentication": (
        f"{UNIT}/test_product.py", f"{UNIT}/test_revocation_lists.py", f"{UNIT}/test_forged_reports.py",
        f"{UNIT}/test_kds.py", f"{UNIT}/test_inspect.py", f"{UNIT}/test_many_chips.py",
    ),
    "certificate_files": (f"{UNIT}/test_certificate_files.py",),
    "certificates": (
        f"{UNIT}/test_certificates.py", f"{UNIT}/test_work_limits.py::test_limits_of_a_certificate_table",
        f"{UNIT}/test_work_limits.py::test_pem_with_other_text_around_it_is_read",
        f"{UNIT}/test_work_limits.py::test_a_certificate_of_a_megabyte_is_not_read", f"{UNIT}/test_many_chips.py",
    ),
    "chain": (
        f"{UNIT}/test_certificates.py", f"{UNIT}/test_signed_algorithm.py", f"{UNIT}/test_forged_reports.py",
        f"{UNIT}/test_kds.py",
    ),
    "extensions": (f"{UNIT}/test_certificates.py", f"{UNIT}/test_forged_reports.py"),
    "kds": (f"{UNIT}/test_kds.py", f"{UNIT}/test_revocation_lists.py", f"{UNIT}/test_certificate_files.py"),
    "kds_cache": (f"{UNIT}/test_revocation_lists.py", f"{UNIT}/test_kds.py"),
    "kds_http": (
        f"{UNIT}/test_kds_requests.py", f"{UNIT}/test_revocation_lists.py", f"{UNIT}/test_company_network.py",
        f"{UNIT}/test_kds.py",
    ),
    "pem": (
        f"{UNIT}/test_work_limits.py::test_pem_with_other_text_around_it_is_read",
        f"{UNIT}/test_work_limits.py::test_no_block_is_hidden_in_another_one", f"{UNIT}/test_certificates.py",
        f"{UNIT}/test_certificate_files.py",
    ),
    "product": (f"{UNIT}/test_product.py", f"{UNIT}/test_inspect.py"),
    "revocation": (f"{UNIT}/test_revocation_lists.py", f"{UNIT}/test_kds.py", f"{UNIT}/test_forged_reports.py"),
    "sources": (f"{UNIT}/test_certificate_files.py", f"{UNIT}/test_kds.py", f"{UNIT}/test_revocation_lists.py"),
}  # fmt: skip

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


class Mutant(NamedTuple):
    """A changed module: the line of the change, the changed code before and after, and the whole module."""

    line: int
    before: str
    after: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module's source."""
    original = ast.parse(source)
    for number, node in enumerate(ast.walk(original)):
        for change in range(_changes(node)):
            tree = copy.deepcopy(original)
            changed = next(one for place, one in enumerate(ast.walk(tree)) if place == number)
            before = ast.unparse(node).splitlines()[0]
            after = _change(tree, changed, change)
            if after is not None:
                yield Mutant(getattr(node, "lineno", 0), before, after, ast.fix_missing_locations(tree))


def _changes(node: ast.AST) -> int:
    """How many different changes a node has."""
    match node:
        case ast.Compare():
            return len(node.ops)
        case ast.BoolOp():
            return 1 + len(node.values)
        case ast.If() | ast.IfExp() | ast.While():
            return 2
        case ast.Constant():
            return 1 if isinstance(node.value, bool | int | float | bytes) else 0
        case ast.BinOp() | ast.UnaryOp() | ast.Return() | ast.Raise() | ast.Expr() | ast.Continue() | ast.Break():
            return 1
    return 0


def _change(tree: ast.Module, node: ast.AST, number: int) -> str | None:
    """Make a node's change in ``tree``; the changed code, or None if this change is not made."""
    made: ast.AST = node
    match node:
        case ast.Compare():
            if type(node.ops[number]) not in _COMPARISONS:
                return None
            node.ops[number] = _COMPARISONS[type(node.ops[number])]()
        case ast.BoolOp() if number == 0:
            node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        case ast.BoolOp():
            del node.values[number - 1]
        case ast.If() | ast.IfExp() | ast.While():
            if "TYPE_CHECKING" in ast.unparse(node.test) or (isinstance(node, ast.While) and number):
                return None
            node.test = ast.Constant(bool(number))
        case ast.Constant(value=bool()):
            node.value = not node.value
        case ast.Constant(value=bytes() as data):
            node.value = data + b"x"
        case ast.Constant(value=int() | float() as count):
            node.value = count + 1
        case ast.BinOp():
            if type(node.op) not in _OPERATORS:
                return None
            node.op = _OPERATORS[type(node.op)]()
        case ast.UnaryOp(op=ast.Not()):
            made = _replace(tree, node, node.operand)
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            node.value = ast.Constant(None)
        case ast.Raise() | ast.Continue() | ast.Break() | ast.Expr(value=ast.Call()):
            made = _replace(tree, node, ast.Pass())
        case _:
            return None
    return ast.unparse(made).splitlines()[0]


def _replace(tree: ast.Module, old: ast.AST, new: ast.AST) -> ast.AST:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                value[:] = [new if one is old else one for one in value]
    return new


class _InPlace(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a mutant in place of its module."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path, self._tree = name, path, tree

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self, origin=str(self._path)) if name == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self._path)
        exec(compile(self._tree, str(self._path), "exec"), module.__dict__)  # the tool's own mutant


def run(module: str, tree: ast.Module, tests: Sequence[str], keys: list[rsa.RSAPrivateKey], seconds: int) -> str:
    """Run tests on a mutant in a forked process: "survived", "noticed" or "too slow"."""
    with tempfile.TemporaryDirectory(prefix="sevsnp-mutant.") as scratch:
        child = os.fork()
        if not child:
            _work(module, tree, tests, keys, seconds, f"{scratch}/tests")
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "too slow"
    return "noticed" if os.waitstatus_to_exitcode(status) else "survived"


def _work(
    module: str, tree: ast.Module, tests: Sequence[str], keys: list[rsa.RSAPrivateKey], seconds: int, scratch: str
) -> NoReturn:
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.chdir(ROOT)
        sys.path.insert(0, str(ROOT))
        left, honest = list(keys), rsa.generate_private_key

        def ready(public_exponent: int, key_size: int, *more: Any) -> rsa.RSAPrivateKey:
            return (
                left.pop()
                if (public_exponent, key_size) == (65537, 4096) and left
                else honest(public_exponent, key_size, *more)
            )

        setattr(rsa, "generate_private_key", ready)  # noqa: B010
        sys.meta_path.insert(0, _InPlace(f"{PACKAGE}.{module}", ROOT / "sevsnp/attestation" / f"{module}.py", tree))
        code = int(
            pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={scratch}", *tests])
        )
        atexit._run_exitfuncs()  # the tests' own temporary directories
    except BaseException:
        code = 1
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("module", nargs="+", help="a module of sevsnp/attestation, without .py")
    parser.add_argument("--sample", type=int, default=0, help="so many mutants of each module, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument("--tests", nargs="+", help="other tests than the module's")
    parser.add_argument("--seconds", type=int, default=60, help="of processor time for one run")
    options = parser.parse_args(arguments)
    assert not any(name == "sevsnp" or name.startswith("sevsnp.") for name in sys.modules)
    keys = [rsa.generate_private_key(65537, 4096) for _ in range(12)]
    survivors = 0
    for module in options.module:
        source = (ROOT / "sevsnp/attestation" / f"{module}.py").read_text()
        tests = options.tests or TESTS.get(module, DEFAULT)
        if run(module, ast.parse(source), tests, keys, options.seconds) != "survived":
            print(f"{module}: its tests fail or take more than {options.seconds} s without any change")
            return 2
        found = list(mutants(source))
        if options.sample and options.sample < len(found):
            found = sorted(random.Random(options.seed).sample(found, options.sample), key=lambda one: one.line)
        counts = {"noticed": 0, "too slow": 0, "survived": 0}
        started = time.monotonic()
        for one in found:
            outcome = run(module, one.tree, tests, keys, options.seconds)
            counts[outcome] += 1
            if outcome == "survived":
                print(f"{module}.py:{one.line}: {one.before}  →  {one.after}", flush=True)
        survivors += counts["survived"]
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        print(f"{module}: {len(found)} mutants: {said}; {time.monotonic() - started:.0f} s", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
