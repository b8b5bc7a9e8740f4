"""Plant faults in the library, one at a time, and see which ones the tests miss.

    make test-faults
    python tests/plant_faults.py --only analysis/laws/data.py --all

`planted_faults.toml` says where faults are planted, how many, and which tests should
catch them. Cosmic Ray finds the places and changes the text; `KeepOneArgument` adds
what it lacks, a minimum without its other side. Each fault is planted in a copy of the
repository, and the tests run in a child of one process that has imported JAX, pandas
and pytest already.

A survivor is a fault that all tests of its target pass. Those that
`known_survivors.toml` explains are counted; any other one is printed and makes the exit
status 1.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import parso
import parso.python.tree
import parso.tree
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

ROOT = Path(__file__).parents[1]
CONFIG = Path(__file__).with_name("planted_faults.toml")
KNOWN = Path(__file__).with_name("known_survivors.toml")
NOT_COPIED = (".*", "__pycache__", "runs", "build", "_build", "*.egg-info")

# Without `plain` pytest warns of modules that were imported before it. The options of
# pyproject.toml are replaced: without the checks of types at each call a child starts in
# a third of the time, and only a test can catch the fault.
OPTIONS = (
    "-x",
    "-q",
    "--assert=plain",
    "-p",
    "no:cacheprovider",
    "-o",
    "addopts=--import-mode=importlib -m 'not slow'",
)

DEPENDENCIES = (
    "beartype",
    "flax.linen",
    "hypothesis",
    "jax.numpy",
    "jaxtyping",
    "optax",
    "pandas",
    "pytest",
    "scipy.optimize",
    "scipy.stats",
)

# Of the eleven other operators that Cosmic Ray puts in an operator's place, the one or
# two that are nearest: the others fail in more places.
REPLACED = (
    "ReplaceBinaryOperator_Add_Sub",
    "ReplaceBinaryOperator_Sub_Add",
    "ReplaceBinaryOperator_Mul_Div",
    "ReplaceBinaryOperator_Div_Mul",
    "ReplaceBinaryOperator_FloorDiv_Div",
    "ReplaceBinaryOperator_Mod_Mul",
    "ReplaceBinaryOperator_Pow_Mul",
    "ReplaceBinaryOperator_BitAnd_BitOr",
    "ReplaceBinaryOperator_BitOr_BitAnd",
    "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_Lt_GtE",
    "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_LtE_Gt",
    "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_Gt_LtE",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_GtE_Lt",
    "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_NotEq_Eq",
    "ReplaceComparisonOperator_Is_IsNot",
    "ReplaceComparisonOperator_IsNot_Is",
    "ReplaceUnaryOperator_Delete_USub",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "AddNot",
    "NumberReplacer",
    "ZeroIterationForLoop",
)


class KeepOneArgument(Operator):
    """`minimum(a, b)` becomes `a`, or `b`; `where(c, a, b)` too; `clip` loses a bound."""

    CHOICES: ClassVar = {
        "minimum": ("{0}", "{1}"),
        "maximum": ("{0}", "{1}"),
        "min": ("{0}", "{1}"),
        "max": ("{0}", "{1}"),
        "where": ("{1}", "{2}"),
        "clip": ("{f}({0}, None, {2})", "{f}({0}, {1}, None)"),
    }

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        for _ in self._list_texts(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        prefix = node.get_first_leaf().prefix
        text = list(self._list_texts(node))[index]
        return parso.python.tree.Name(text, node.start_pos, prefix)

    def _list_texts(self, node: Any) -> Iterator[str]:
        """What the whole expression may become."""
        if node.type not in ("atom_expr", "power"):
            return
        for place, call in enumerate(node.children[1:], 1):
            name = node.children[place - 1].get_last_leaf().value
            if call.get_code(False)[0] != "(" or name not in self.CHOICES:
                continue
            if call.children[1].type != "arglist":
                continue
            arguments = [a for a in call.children[1].children if a.type != "operator"]
            function = "".join(c.get_code(False) for c in node.children[:place])
            rest = "".join(c.get_code() for c in node.children[place + 1 :])
            count = 3 if name in ("where", "clip") else 2
            is_plain = all(a.type != "argument" for a in arguments)
            if len(arguments) != count or not is_plain:
                continue
            texts = [a.get_code(False) for a in arguments]
            for choice in self.CHOICES[name]:
                yield f"({choice.format(*texts, f=function)}){rest}"

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


@dataclass(frozen=True)
class Fault:
    """One change of one module."""

    module: str
    operator: str
    occurrence: int
    row: int
    function: str

    def plant(self, source: str) -> str:
        return mutate_code(source, make_operator(self.operator), self.occurrence)


@dataclass
class Outcome:
    """What the tests said about a fault."""

    fault: Fault
    line: str
    becomes: str
    verdict: str  # "caught", "timed out", "survived"
    seconds: float


def make_operator(name: str) -> Operator:
    if name == "KeepOneArgument":
        return KeepOneArgument()
    return get_operator(f"core/{name}")()


def list_faults(module: str, source: str) -> list[Fault]:
    """All faults of a module, but those in what only people read, types and errors."""
    faults = []
    nodes = list(ast_nodes(parso.parse(source)))
    for name in (*REPLACED, "KeepOneArgument"):
        operator = make_operator(name)
        occurrence = 0
        for node in nodes:
            for _ in operator.mutation_positions(node):
                if not (is_left_alone(node) or is_end_of_range(node)):
                    row, function = node.start_pos[0], find_function(node)
                    faults.append(Fault(module, name, occurrence, row, function))
                occurrence += 1
    return sorted(faults, key=lambda fault: (fault.row, fault.operator))


def is_left_alone(node: Any) -> bool:
    """Whether a node is part of an annotation, an f-string, an error, a warning or the
    name of the last axis.
    """
    inner, outer = node, node.parent
    while outer is not None:
        if outer.type in ("annassign", "param", "tfpdef"):
            # In `x: float = 1 + 1` and in parameters only the value is computed.
            children = outer.children
            equals = [c.start_pos for c in children if c == "="]
            if not equals or inner.start_pos < equals[0]:
                return True
        if outer.type == "argument" and outer.get_code(False) == "axis=-1":
            return True  # of two axes the last one is axis 1
        if outer.type == "parameters" and inner.type == "operator":
            return True  # the star before names that must be given
        if outer.type == "funcdef" and inner.get_previous_sibling() == "->":
            return True
        if outer.type in ("fstring", "raise_stmt", "assert_stmt", "decorator"):
            return True
        text = outer.get_code(False) if outer.type == "atom_expr" else ""
        if text.startswith(("warnings.warn(", "Literal[", "Callable[")):
            return True
        inner, outer = outer, outer.parent
    return False


def find_function(node: Any) -> str:
    """The name of the outermost function or class that a node is part of; "" for none."""
    name = ""
    while node is not None:
        if node.type in ("funcdef", "classdef"):
            name = node.name.value
        node = node.parent
    return name


def is_end_of_range(node: Any) -> bool:
    """Whether a node is an end of a range that the solver searches: those are choices."""
    outer = node.parent
    while outer is not None:
        code = outer.get_code(False)
        if outer.type == "argument" and code.startswith("unit="):
            return False
        if outer.type == "argument" and code.startswith(("nonlinear=", "log=")):
            return code.startswith("nonlinear=") and node.type != "keyword"
        if code.startswith(("Nonlinear(", "EXPONENT =", "SIGNED =")):
            return node.type != "keyword"
        outer = outer.parent
    return False


def describe_change(source: str, changed: str) -> tuple[str, str]:
    """The lines that differ, without their indentation."""
    before, after = source.splitlines(), changed.splitlines()
    removed, added = [], []
    for line in difflib.unified_diff(before, after, n=0, lineterm=""):
        if line.startswith("-") and not line.startswith("---"):
            removed.append(line[1:].strip())
        elif line.startswith("+") and not line.startswith("+++"):
            added.append(line[1:].strip())
    return " ".join(removed), " ".join(added)


def copy_repository(to: Path) -> None:
    ignored = shutil.ignore_patterns(*NOT_COPIED)
    for name in ("analysis", "scaling", "experiments", "benchmarks", "tests", "docs"):
        shutil.copytree(ROOT / name, to / name, ignore=ignored)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, to)


def import_dependencies() -> None:
    """What every child would import for seconds; of the library nothing."""
    for name in DEPENDENCIES:
        importlib.import_module(name)


def run_tests(tests: list[str], limit: float | None, write: bool = False) -> str:
    """Run tests in a child process; write says whether it may cache bytecode."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        sys.dont_write_bytecode = not write
        if not write:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        os._exit(run_pytest(tests))
    started = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "survived" if code == 0 else "caught"
        if limit is not None and time.monotonic() - started > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timed out"
        time.sleep(0.01)


def run_pytest(tests: list[str]) -> int:
    import pytest

    try:
        return int(pytest.main([*OPTIONS, *tests]))
    except BaseException:
        traceback.print_exc()
        return 1


def forget_bytecode(path: Path) -> None:
    for file in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        file.unlink()


def try_fault(fault: Fault, tests: list[str], limit: float) -> Outcome | None:
    """The outcome of one fault in the copy, which is the current folder; None where the
    changed text is no Python.
    """
    path = Path(fault.module)
    source = path.read_text()
    changed = fault.plant(source)
    try:
        compile(changed, fault.module, "exec")
    except SyntaxError:
        return None
    line, becomes = describe_change(source, changed)
    started = time.monotonic()
    path.write_text(changed)
    forget_bytecode(path)
    try:
        verdict = run_tests(tests, limit)
    finally:
        path.write_text(source)
    return Outcome(fault, line, becomes, verdict, time.monotonic() - started)


def choose_faults(target: dict[str, Any], arguments: argparse.Namespace) -> list[Fault]:
    """The faults of a target that are planted, in the order of its modules."""
    faults = []
    for pattern in target["modules"]:
        for path in sorted(Path().glob(pattern)):
            if str(path) in target.get("without", ()):
                continue
            if arguments.only is None or path.match(arguments.only):
                faults.extend(list_faults(str(path), path.read_text()))
    left_out = target.get("without_functions", ())
    faults = [fault for fault in faults if fault.function not in left_out]
    sample = target.get("sample")
    is_whole = arguments.all or arguments.again or sample is None
    if is_whole or len(faults) <= sample:
        return faults
    chosen = random.Random(arguments.seed).sample(range(len(faults)), sample)
    return [faults[index] for index in sorted(chosen)]


def try_target(
    target: dict[str, Any], faults: list[Fault], survivors: set[tuple[str, str, str]]
) -> list[Outcome]:
    started = time.monotonic()
    if run_tests(target["tests"], None, write=True) != "survived":
        raise SystemExit(f"the tests of {target['name']} fail without a fault")
    limit = 10 + 4 * (time.monotonic() - started)
    outcomes = []
    for fault in faults:
        outcome = try_fault(fault, target["tests"], limit)
        if outcome is None:
            continue
        outcomes.append(outcome)
        key = (fault.module, outcome.line, outcome.becomes)
        if outcome.verdict == "survived" and key not in survivors:
            print(f"{fault.module}:{fault.row}  {outcome.line}\n    {outcome.becomes}")
            sys.stdout.flush()
    return outcomes


def read_known() -> set[tuple[str, str, str]]:
    entries = tomllib.loads(KNOWN.read_text()).get("survivor", [])
    return {(entry["module"], entry["line"], entry["becomes"]) for entry in entries}


def print_counts(outcomes: list[Outcome], known: set[tuple[str, str, str]]) -> int:
    """A row for each module; returns the number of survivors that nobody explained."""
    print("\n| module | planted | caught | survived | of these known |")
    print("| --- | --- | --- | --- | --- |")
    unknown = 0
    for module in dict.fromkeys(outcome.fault.module for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.fault.module == module]
        left = [outcome for outcome in own if outcome.verdict == "survived"]
        explained = [o for o in left if (module, o.line, o.becomes) in known]
        caught = len(own) - len(left)
        unknown += len(left) - len(explained)
        print(f"| {module} | {len(own)} | {caught} | {len(left)} | {len(explained)} |")
    return unknown


def read_again(file: Path) -> set[tuple[str, str, str]]:
    """The survivors of an earlier run."""
    return {
        (entry["fault"]["module"], entry["line"], entry["becomes"])
        for entry in json.loads(file.read_text())
        if entry["verdict"] == "survived"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="modules that match this, with all their faults")
    parser.add_argument("--target", help="one target of planted_faults.toml")
    parser.add_argument("--all", action="store_true", help="no samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", action="store_true", help="plant nothing")
    parser.add_argument("--again", type=Path, help="survivors of this file of --out")
    parser.add_argument("--out", type=Path, help="write all outcomes as JSON")
    arguments = parser.parse_args()
    os.environ.setdefault("SCALING_DATA_DIR", str(ROOT.parent / "shared" / "data"))
    os.environ["OMP_NUM_THREADS"] = "1"
    out = arguments.out and arguments.out.resolve()
    again = arguments.again and read_again(arguments.again)
    known = read_known()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        copy_repository(Path(folder))
        os.chdir(folder)
        sys.path[0] = folder
        os.environ["PYTHONPATH"] = folder
        import_dependencies()
        for target in tomllib.loads(CONFIG.read_text())["target"]:
            if arguments.target not in (None, target["name"]):
                continue
            faults = choose_faults(target, arguments)
            if again is not None:
                faults = [fault for fault in faults if is_in(fault, again)]
            print(f"{target['name']}: {len(faults)} faults", flush=True)
            if faults and not arguments.count:
                outcomes += try_target(target, faults, known)
                if out:
                    out.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    unknown = print_counts(outcomes, known)
    raise SystemExit(unknown > 0)


def is_in(fault: Fault, chosen: set[tuple[str, str, str]]) -> bool:
    source = Path(fault.module).read_text()
    return (fault.module, *describe_change(source, fault.plant(source))) in chosen


if __name__ == "__main__":
    main()
