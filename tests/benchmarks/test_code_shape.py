"""The measures of code that are known: lines, nodes, names, arrows, levels, circles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "code_shape.py"


def write_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "house"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def measure(package: Path) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), str(package), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["house"]


def test_lines_nodes_and_names_are_counted(tmp_path) -> None:
    text = (
        '"""Docstring\n\nof a module."""\n\n# comment\nx: Any = 1\n\n\n'
        'def run(a):\n    """Docstring."""\n    return [b if b else 0 for b in a]\n\n\n'
        "def read_all(a):\n    return a  # why\n"
    )
    shape = measure(write_package(tmp_path, {"one.py": text}))
    assert shape["files"] == 1
    assert shape["lines_of_code"] == 5
    assert shape["lines_per_file"] == [15, 15, 15]
    assert shape["lines_per_function"] == [3, 3, 3]
    assert shape["conditionals_per_1000_lines"] == 200
    assert shape["comprehensions_per_1000_lines"] == 200
    assert shape["one_word_functions_percent"] == 50
    assert shape["any_names"] == 1


def test_the_contexts_of_names_are_nodes(tmp_path) -> None:
    """Module, Assign, Name, Store, Name, Load: six nodes on one line."""
    shape = measure(write_package(tmp_path, {"one.py": "x = y\n"}))
    assert shape["nodes_per_line"] == 6


def test_lazy_imports_make_arrows_and_imports_for_types_do_not(tmp_path) -> None:
    files = {
        "__init__.py": "from house.top import run\n",
        "top.py": "from house import middle\n",
        "middle.py": "def load():\n    from .low.thing import x\n",
        "low/__init__.py": "",
        "low/thing.py": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from house.top import run\n"
        ),
        "aside.py": "import house.low.thing\n",
    }
    shape = measure(write_package(tmp_path, files))
    assert shape["modules"] == 5  # the root takes no part
    assert shape["rooms"] == 4
    assert shape["arrows"] == 3
    assert shape["levels"] == 3
    assert shape["module_circles"] == shape["room_circles"] == []


def test_circles_of_modules_and_of_rooms_are_named(tmp_path) -> None:
    files = {
        "a/one.py": "import house.b.one\n",
        "a/two.py": "from . import three\n",
        "a/three.py": "from .two import x\n",
        "b/one.py": "from house.a import two\n",
        "c.py": "from house.b import one\n",
    }
    shape = measure(write_package(tmp_path, files))
    assert shape["module_circles"] == [["house.a.three", "house.a.two"]]
    assert shape["room_circles"] == [["a", "b"]]
    assert shape["levels"] == 2


def test_a_table_has_a_column_for_each_package(tmp_path) -> None:
    package = write_package(tmp_path, {"one.py": "x = 1\n"})
    command = [sys.executable, str(SCRIPT), str(package), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"| | house | {package} |"
    assert all(line.count("|") == 4 for line in lines)
