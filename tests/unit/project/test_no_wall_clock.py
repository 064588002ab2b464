# SPDX-License-Identifier: Apache-2.0
"""No test asserts how long something took, and no time-out of a test is short: see tests/support/waiting.py.

A test can express "fast" in other ways: by the order of events, by a clock that it sets itself, by the number of
processes or requests, or by processor time compared with a control.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.project.test_house_rules import python_files, relative

# The one place that compares times and then fails.
NETS = "tests/support/waiting.py"
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time_ns", "clock_gettime"}
COMMON = {"time.time", "datetime.now"}  # their last words alone say too little
# What a number goes through and stays what it is.
TRANSPARENT = {"min", "max", "sum", "abs", "round", "int", "float", "sorted", "all", "any", "zip"}
# What a benchmark's row says of times, of the processor's too: even a ratio of two works is another in each run.
MEASURED = {"ratio", "seconds", "bare_seconds", "per_second"}
# In seconds: a test that is about a time-out gives a shorter one, and no machine is too slow for a longer one.
ABOUT_IT, GENEROUS = 2, 60
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parts(value: ast.AST) -> Iterator[ast.AST]:
    """What an expression's value is made of: not what a call is given, but for what hands numbers on."""
    yield value
    if isinstance(value, ast.Call):
        yield from parts(value.func)
        if isinstance(value.func, ast.Name) and value.func.id in TRANSPARENT:
            for argument in value.args:
                yield from parts(argument)
    else:
        for child in ast.iter_child_nodes(value):
            yield from parts(child)


def is_clock(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in CLOCKS or ast.unparse(node.func) in COMMON


def is_measured(value: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant) and part.slice.value in MEASURED
        for part in parts(value)
    )


def compares_measured(test: ast.AST) -> bool:
    """Whether a row's value must be less or more than something other than 0, which every time is more than."""
    for compare in (part for part in ast.walk(test) if isinstance(part, ast.Compare)):
        sides = [compare.left, *compare.comparators]
        for operator, *pair in zip(compare.ops, sides, sides[1:], strict=False):
            zero = any(isinstance(side, ast.Constant) and side.value == 0 for side in pair)
            ordered = isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE)
            if ordered and not zero and any(map(is_measured, pair)):
                return True
    return False


class Timed:
    """The names in a module that hold times: variables, and functions that return them."""

    def __init__(self, module: ast.Module) -> None:
        self.names: set[str] = set()
        self.functions: set[str] = set()
        before = -1
        while before != len(self.names) + len(self.functions):
            before = len(self.names) + len(self.functions)
            for node in ast.walk(module):
                self._learn(node)

    def _learn(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value:
            # A future of a timed function, and an element of a container, count for the whole.
            handed = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
            if self.holds(node.value) or handed & self.functions:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.names |= {name for target in targets for name in _bound(target)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            if isinstance(node.func.value, ast.Name) and any(map(self.holds, node.args)):
                self.names.add(node.func.value.id)
        elif isinstance(node, Function):
            returned = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value]
            if any(map(self.holds, returned)):
                self.functions.add(node.name)

    def holds(self, value: ast.AST) -> bool:
        return any(
            is_clock(part) or (isinstance(part, ast.Name) and part.id in self.names | self.functions)
            for part in parts(value)
        )

    def compared(self, test: ast.AST) -> bool:
        return any(isinstance(part, ast.Compare) and self.holds(part) for part in ast.walk(test))


def _bound(target: ast.AST) -> Iterator[str]:
    """The variables that an assignment sets, or sets an element of."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _bound(element)
    elif isinstance(target, ast.Subscript | ast.Starred):
        yield from _bound(target.value)


def fails(node: ast.AST) -> bool:
    """Whether a statement raises an error or fails the test."""
    return isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and "pytest.fail(" in ast.unparse(node))


def asserted_times(source: str) -> list[int]:
    """The lines on which a test fails for what a clock says."""
    if not any(name in source for name in CLOCKS | COMMON | MEASURED):
        return []
    module = ast.parse(source)
    timed = Timed(module)
    return [
        node.lineno
        for node in ast.walk(module)
        if (isinstance(node, ast.Assert) and (timed.compared(node.test) or compares_measured(node.test)))
        or (isinstance(node, ast.If) and timed.compared(node.test) and any(map(fails, node.body)))
    ]


def short_nets(source: str) -> list[int]:
    """The lines with a time-out that is neither so short that it must be meant nor so long that nothing reaches it."""

    def numbers(call: ast.Call) -> Iterator[ast.AST]:
        yield from (one.value for one in call.keywords if one.arg == "timeout")
        if isinstance(call.func, ast.Attribute):
            if call.func.attr in ("wait", "join", "settimeout", "result"):
                yield from call.args[:1]
            elif call.func.attr == "create_connection":
                yield from call.args[1:2]

    return [
        call.lineno
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        for number in numbers(call)
        if isinstance(number, ast.Constant)
        and isinstance(number.value, int | float)
        and ABOUT_IT < number.value < GENEROUS
    ]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("start = time.monotonic()\nwork()\nassert time.monotonic() - start < 5", [3]),
        ("assert time.monotonic() < deadline", [1]),
        ("took = perf_counter() - start\nassert took < 1", [2]),
        ("took = {}\ntook['a'] = time.time_ns() - start\nassert took['a'] < took['b'] * 2", [3]),
        ("times = []\ntimes.append(time.perf_counter() - start)\nassert min(times) < 0.05", [3]),
        ("def seconds():\n    start = time.time()\n    return time.time() - start\nassert seconds() < 30", [4]),
        ("def f():\n    return monotonic() - x\none = pool.submit(f)\nassert one.result() < 30", [4]),
        ("both = [(f(), time.monotonic())]\nours, _ = zip(*both)\nassert 0.5 <= ours[0] < 2", [3]),
        ("a = datetime.now(UTC)\nassert datetime.now(UTC) - a < limit", [2]),
        ("if time.monotonic() > end:\n    pytest.fail('slow')", [1]),
        ("if time.monotonic() > end:\n    raise AssertionError", [1]),
        ("assert row['ratio'] > 0 and min(one['ratio'], other['ratio']) > 1", [1]),
        ("assert 0 < row['seconds'][0] < 2", [1]),
        ("assert row['ratio'] > 0 and row['ratio'] == 2 and row['met'] is (ratio < 1)", []),
        # What is no such thing: processor time, a limit that is handed on, a moment at which to look.
        ("start = time.thread_time()\nassert time.thread_time() - start < other", []),
        ("found = wait_for(log, time.monotonic() + 60)\nassert found == 3", []),
        ("start = time.time()\nassert written_since(start, directory) == []", []),
        ("while time.monotonic() < end:\n    look()", []),
        ("assert made.time == 5 and report.now() > 3", []),
    ],
)
def test_control_asserted_times_are_detected(source: str, found: list[int]) -> None:
    assert asserted_times(source) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("process.wait(10)\nthread.join(5.0)\nqueue.get(timeout=30)", [1, 2, 3]),
        ("socket.create_connection(place, 5)\nclient.settimeout(20)", [1, 2]),
        ("process.wait(120)\nstop.wait(0.1)\nask(timeout=NET)\n','.join(words)\nrun(timeout=None)", []),
    ],
)
def test_control_short_time_outs_are_detected(source: str, found: list[int]) -> None:
    assert short_nets(source) == found


def files_of_tests() -> list[Path]:
    return [path for path in python_files("tests") if relative(path) != NETS]


def test_no_test_asserts_seconds() -> None:
    found = [f"{relative(path)}:{line}" for path in files_of_tests() for line in asserted_times(path.read_text())]
    assert found == [], "say it in order of events, a clock of the test's, counts or processor time"


def test_no_time_out_is_too_short_for_a_busy_machine() -> None:
    found = [f"{relative(path)}:{line}" for path in files_of_tests() for line in short_nets(path.read_text())]
    assert found == [], (
        f"at least {GENEROUS} s (tests/support/waiting.py: NET), or at most {ABOUT_IT} where the test is about it"
    )
