"""The source runs nothing that a file holds: it unpickles nothing and evaluates no
text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for package in ("scaling", "analysis", "experiments")
    for path in (ROOT / package).rglob("*.py")
)
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "jsonpickle",
}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "read_pickle",
    "to_pickle",
    "read_hdf",
    "unsafe_load",
    "system",
    "popen",
}
# Compiled programs are code whatever they are stored as. They are loaded only from files
# that this user alone can write (`analysis.fitting.programs.is_private`).
ALLOWED = {"analysis/fitting/programs.py": ["pickle"]}
RISKY = {"allow_pickle", "shell"}  # arguments that may only be False


def offences(tree: ast.AST) -> Iterator[str]:
    """What in a module could run what it reads; a method called `compile`, as that of
    `re`, is something else.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                alias.name
                for alias in node.names
                if alias.name.split(".")[0] in MODULES
            )
        elif isinstance(node, ast.ImportFrom):
            yield from (
                node.module or ""
                for _ in node.names[:1]
                if (node.module or "").split(".")[0] in MODULES
            )
        elif isinstance(node, ast.Call):
            plain = isinstance(node.func, ast.Name)
            name = (
                node.func.id
                if isinstance(node.func, ast.Name)
                else getattr(node.func, "attr", "")
            )
            if name in CALLS and (plain or name != "compile"):
                yield name
            for keyword in node.keywords:
                if (
                    keyword.arg in RISKY
                    and getattr(keyword.value, "value", True) is not False
                ):
                    yield f"{keyword.arg} of {name}"


def test_no_module_runs_what_it_reads() -> None:
    assert len(FILES) > 80
    found = {
        str(path.relative_to(ROOT)): list(offences(ast.parse(path.read_text())))
        for path in FILES
    }
    assert {path: what for path, what in found.items() if what} == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from yaml import load",
        "import joblib.memory",
        "eval(text)",
        "exec(open(path).read())",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=flag)",
        "pandas.read_pickle(path)",
        "os.system(text)",
    ],
)
def test_what_would_is_found(line: str) -> None:
    assert list(offences(ast.parse(line)))


def test_every_module_says_what_it_is_for() -> None:
    """A module with code begins with a docstring, which is no placeholder."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        if not tree.body:
            continue  # an empty __init__
        text = ast.get_docstring(tree) or ""
        assert text and "TODO" not in text, path
