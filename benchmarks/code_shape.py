"""Measure how a Python package reads: sizes, density, names and imports.

    python benchmarks/code_shape.py   # this repository's packages
    python benchmarks/code_shape.py PATH/TO/nanodo --json

Each argument is the folder of one package. The output is a Markdown table with one
column per package, the table of docs/concepts/design.md. The definitions are:

lines of code
    Lines that are not blank, not a comment alone, and not part of a docstring.
syntax nodes
    Every node that `ast.walk` visits, the `Load` and `Store` contexts included.
module functions
    Functions at the top level of a module, private ones included. A name is one word
    if it holds no underscore after its leading and trailing underscores are removed.
`Any` names
    Every use of the name `Any` in an expression or annotation.
imports
    Every import statement at any depth, so imports inside a function count. Imports
    under `if TYPE_CHECKING:` do not count, since they never run. Only imports between
    modules of the same package count.
arrows
    Pairs of modules of which one imports the other. The root `__init__` of a package
    takes no part, since it only lists the public names.
rooms
    The top-level modules and folders of a package, without `__init__`.
levels
    The number of rooms on the longest chain of imports. The rooms of a circle stand on
    one level.
circles
    Groups of two or more modules (or rooms) in which each one reaches every other
    through imports: the strongly connected components.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
OWN_PACKAGES = ("scaling", "analysis", "experiments")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

Graph = dict[str, set[str]]


class Module(NamedTuple):
    """One parsed file, with its dotted name inside the package."""

    name: str
    path: Path
    tree: ast.Module


class Spread(NamedTuple):
    """Median, 90 % quantile and maximum of some lengths."""

    median: int
    p90: int
    maximum: int

    def __str__(self) -> str:
        return f"{self.median} / {self.p90} / {self.maximum}"


@dataclass(frozen=True)
class Shape:
    """What is measured of one package; the module docstring has the definitions."""

    files: int
    lines_of_code: int
    lines_per_file: Spread
    lines_per_function: Spread
    nodes_per_line: float
    conditionals_per_1000_lines: float
    comprehensions_per_1000_lines: float
    one_word_functions_percent: float
    any_names: int
    modules: int
    arrows: int
    module_circles: list[list[str]]
    rooms: int
    levels: int
    room_circles: list[list[str]]


def read_modules(package: Path) -> list[Module]:
    """Parse every Python file of the package.

    Raises:
        FileNotFoundError: the folder holds no Python file.
    """
    modules = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join((package.name, *parts))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules.append(Module(name, path, tree))
    if not modules:
        raise FileNotFoundError(f"{package} holds no Python file; name a package")
    return modules


def find_docstring_lines(tree: ast.Module) -> set[int]:
    """Numbers of the lines that docstrings of modules, classes and functions fill."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            continue
        if ast.get_docstring(node, clean=False) is None:
            continue
        docstring = node.body[0]
        lines |= set(range(docstring.lineno, _last_line(docstring) + 1))
    return lines


def count_code_lines(module: Module) -> int:
    """Lines of the file that are not blank, a comment alone, or a docstring."""
    docstrings = find_docstring_lines(module.tree)
    count = 0
    for number, line in enumerate(module.path.read_text().splitlines(), start=1):
        text = line.strip()
        if text and not text.startswith("#") and number not in docstrings:
            count += 1
    return count


def _last_line(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def summarize_lengths(lengths: Iterable[int]) -> Spread:
    """Median, 90 % quantile and maximum; zeros where there is nothing to measure."""
    ordered = sorted(lengths)
    if not ordered:
        return Spread(0, 0, 0)
    return Spread(
        median=ordered[len(ordered) // 2],
        p90=ordered[int(0.9 * len(ordered))],
        maximum=ordered[-1],
    )


def is_type_checking_block(node: ast.AST) -> bool:
    """Whether the node is `if TYPE_CHECKING:` or `if typing.TYPE_CHECKING:`."""
    if not isinstance(node, ast.If):
        return False
    test = node.test
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def walk_runtime(node: ast.AST) -> Iterator[ast.AST]:
    """Visit every node below, except what stands under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking_block(child):
            for statement in child.orelse:
                yield statement
                yield from walk_runtime(statement)
            continue
        yield child
        yield from walk_runtime(child)


def find_imports(module: Module, names: set[str]) -> set[str]:
    """Names of the package's modules that this module imports, lazily or not.

    Args:
        module: the importing module.
        names: dotted names of all modules of the package; a folder's `__init__` has
            the name of the folder.
    """
    found = set()
    for node in walk_runtime(module.tree):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _resolve_base(module, node)
            # `from a.b import c` imports the module a.b.c if there is one, else a.b.
            candidates = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in names else base
                for alias in node.names
            ]
        else:
            continue
        found |= {name for name in candidates if name in names}
    return found - {name_module(module)}


def _resolve_base(module: Module, node: ast.ImportFrom) -> str:
    """The dotted name before `import`, with leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    parents = module.name.split(".")[: -node.level]
    return ".".join([*parents, node.module] if node.module else parents)


def name_module(module: Module) -> str:
    """The name under which a module is imported: a folder's for its `__init__`."""
    return module.name.removesuffix(".__init__")


def build_module_graph(package: str, modules: list[Module]) -> Graph:
    """Which module imports which, without the root `__init__`."""
    names = {name_module(module) for module in modules}
    graph: Graph = {}
    for module in modules:
        name = name_module(module)
        if name != package:
            graph[name] = find_imports(module, names) - {package}
    return graph


def build_room_graph(module_graph: Graph) -> Graph:
    """Which top-level module or folder imports which."""
    graph: Graph = {}
    for importer, imported in module_graph.items():
        room = importer.split(".")[1]
        others = {name.split(".")[1] for name in imported}
        graph.setdefault(room, set()).update(others - {room})
    return graph


def find_reachable(graph: Graph, start: str) -> set[str]:
    """Every node that some path of at least one arrow reaches from the start."""
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += graph[name]
    return reached


def find_circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of two or more nodes, each in sorted order."""
    reachable = {name: find_reachable(graph, name) for name in graph}
    circles = set()
    for name, reached in reachable.items():
        members = {other for other in reached if name in reachable[other]}
        if len(members) > 1:
            circles.add(tuple(sorted(members)))
    return [list(circle) for circle in sorted(circles)]


def count_levels(graph: Graph) -> int:
    """Nodes on the longest path of the graph, the nodes of a circle taken as one."""
    group = {name: name for name in graph}
    for circle in find_circles(graph):
        for name in circle:
            group[name] = circle[0]
    condensed: Graph = {name: set() for name in group.values()}
    for name, imported in graph.items():
        targets = {group[other] for other in imported}
        condensed[group[name]] |= targets - {group[name]}

    levels: dict[str, int] = {}

    def find_level(name: str) -> int:
        if name not in levels:
            below = [find_level(other) for other in condensed[name]]
            levels[name] = 1 + max(below, default=0)
        return levels[name]

    return max((find_level(name) for name in condensed), default=0)


def measure_package(package: Path) -> Shape:
    """Measure one package."""
    package = package.resolve()
    modules = read_modules(package)
    file_lengths = []
    function_lengths = []
    function_names = []
    lines_of_code = nodes = conditionals = comprehensions = any_names = 0
    for module in modules:
        file_lengths.append(len(module.path.read_text().splitlines()))
        lines_of_code += count_code_lines(module)
        for statement in module.tree.body:
            if isinstance(statement, FUNCTIONS):
                function_names.append(statement.name)
        for node in ast.walk(module.tree):
            nodes += 1
            conditionals += isinstance(node, ast.IfExp)
            comprehensions += isinstance(node, COMPREHENSIONS)
            any_names += isinstance(node, ast.Name) and node.id == "Any"
            if isinstance(node, FUNCTIONS):
                function_lengths.append(_last_line(node) - node.lineno + 1)

    one_word = [name for name in function_names if "_" not in name.strip("_")]
    module_graph = build_module_graph(package.name, modules)
    room_graph = build_room_graph(module_graph)
    return Shape(
        files=len(modules),
        lines_of_code=lines_of_code,
        lines_per_file=summarize_lengths(file_lengths),
        lines_per_function=summarize_lengths(function_lengths),
        nodes_per_line=_divide_or_nan(nodes, lines_of_code),
        conditionals_per_1000_lines=_divide_or_nan(1000 * conditionals, lines_of_code),
        comprehensions_per_1000_lines=_divide_or_nan(
            1000 * comprehensions, lines_of_code
        ),
        one_word_functions_percent=_divide_or_nan(
            100 * len(one_word), len(function_names)
        ),
        any_names=any_names,
        modules=len(module_graph),
        arrows=sum(len(imported) for imported in module_graph.values()),
        module_circles=find_circles(module_graph),
        rooms=len(room_graph),
        levels=count_levels(room_graph),
        room_circles=find_circles(room_graph),
    )


def _divide_or_nan(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def format_table(shapes: dict[str, Shape]) -> str:
    """A Markdown table with a column per package."""
    rows: dict[str, list[str]] = {}
    for shape in shapes.values():
        cells = {
            "files": str(shape.files),
            "lines of code": f"{shape.lines_of_code:,}",
            "lines a file, median / p90 / max": str(shape.lines_per_file),
            "lines a function, median / p90 / max": str(shape.lines_per_function),
            "syntax nodes per line of code": f"{shape.nodes_per_line:.1f}",
            "conditional expressions / 1000 lines": (
                f"{shape.conditionals_per_1000_lines:.0f}"
            ),
            "comprehensions / 1000 lines": f"{shape.comprehensions_per_1000_lines:.0f}",
            "module functions named by one word": (
                f"{shape.one_word_functions_percent:.0f} %"
            ),
            "`Any` names": str(shape.any_names),
            "modules / import arrows / circles": (
                f"{shape.modules} / {shape.arrows} / {len(shape.module_circles)}"
            ),
            "rooms / import levels / circles": (
                f"{shape.rooms} / {shape.levels} / {len(shape.room_circles)}"
            ),
        }
        for title, cell in cells.items():
            rows.setdefault(title, []).append(cell)
    lines = [
        "| | " + " | ".join(shapes) + " |",
        "|---" * (1 + len(shapes)) + "|",
    ]
    for title, cells in rows.items():
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def list_circles(shapes: dict[str, Shape]) -> list[str]:
    """One sentence per circle, so that it can be found and cut."""
    sentences = []
    for package, shape in shapes.items():
        for circle in shape.room_circles:
            sentences.append(f"{package}: circle of rooms {', '.join(circle)}")
        for circle in shape.module_circles:
            sentences.append(f"{package}: circle of modules {', '.join(circle)}")
    return sentences


def main() -> None:
    """Measure the packages and print the table, the circles and, if asked, JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "packages",
        nargs="*",
        type=Path,
        default=[REPOSITORY / name for name in OWN_PACKAGES],
        help="folders of packages; default: the packages of this repository",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    args = parser.parse_args()
    shapes: dict[str, Shape] = {}
    for path in args.packages:
        name = path.resolve().name
        # Two copies of one package are told apart by their paths.
        shapes[str(path) if name in shapes else name] = measure_package(path)
    if args.json:
        print(
            json.dumps({name: dataclasses.asdict(one) for name, one in shapes.items()})
        )
        return
    print(format_table(shapes))
    for sentence in list_circles(shapes):
        print(f"\n{sentence}")


if __name__ == "__main__":
    main()
