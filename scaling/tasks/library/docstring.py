"""The first line of a function's docstring, from its code: a summary.

The functions are from the documents of the source `code`; held-out ones are from the
documents that `DataConfig` holds out of that source (`registry.check_pretraining`). No
two files share a summary; one in eleven held-out summaries still stands elsewhere in the
text of the source. Parsing all files takes about twenty seconds.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from scaling.config import DataConfig
from scaling.data.sources import CODE_PACKAGES, read_code_files
from scaling.tasks.examples import CompletionExample, TaskData, TextOrigin
from scaling.tasks.options import TaskOptions
from scaling.tasks.registry import register_task
from scaling.tasks.split import split_examples

QUESTION = "\n# Summary:"
FEWEST_WORDS = 3
"""A shorter line, as "Returns:", is no summary."""


class Function(NamedTuple):
    """A function with a docstring.

    Attributes:
        code: as `ast.unparse` writes it, without docstring, decorators, comments and
            blank lines.
        summary: first line of the docstring.
    """

    code: str
    summary: str


@register_task("docstring", "bytes", "pieces", "heldout_fraction")
def open_docstring(options: TaskOptions) -> TaskData:
    """Functions whose code, cut after a line, and summary have at most `bytes` bytes; at
    most `pieces` from each file.
    """
    size = options.read_integer("bytes", 120, least=60, most=100_000)
    pieces = options.read_integer("pieces", 20, least=1, most=1000)
    fraction = options.read_fraction("heldout_fraction", DataConfig.heldout_fraction)
    functions: dict[str, list[Function]] = {}
    uses: Counter[str] = Counter()
    for _, _, text in read_code_files():
        found = list(find_functions(text))
        functions[hashlib.sha256(text.encode()).hexdigest()] = found
        uses.update({function.summary for function in found})
    examples: list[CompletionExample] = []
    for digest, found in functions.items():
        # A summary of several files may stand in the training text too.
        own = [function for function in found if uses[function.summary] == 1]
        examples += itertools.islice(make_summaries(own, size, digest), pieces)
    split = split_examples(examples, fraction, bytes.fromhex)
    versions = {name: importlib.metadata.version(name) for name in CODE_PACKAGES}
    return TaskData(
        name="docstring",
        kind="completion",
        train=split.train,
        heldout=split.heldout,
        metrics=("exact_match", "rouge1", "rouge2", "rougeL", "chrf"),
        origin=TextOrigin("code", fraction),
        about={"packages": versions, "duplicates": split.duplicates},
    )


def find_functions(text: str) -> Iterator[Function]:
    """The functions and methods of a module whose docstring begins with a summary."""
    try:
        with warnings.catch_warnings():
            # Escapes in the strings of other packages are none of our business.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in _list_functions(tree):
        docstring = ast.get_docstring(node)
        summary = docstring.partition("\n")[0].strip() if docstring else ""
        if len(summary.split()) >= FEWEST_WORDS and len(node.body) > 1:
            node.body = node.body[1:]
            node.decorator_list = []
            lines = ast.unparse(node).split("\n")
            yield Function("\n".join(filter(None, lines)), summary)


def _list_functions(
    parent: ast.Module | ast.ClassDef,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module and methods of its classes, in the order of the text."""
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _list_functions(node)


def make_summaries(
    functions: Iterable[Function], size: int, document: str
) -> Iterator[CompletionExample]:
    """The examples of a module, with at most `size` bytes each."""
    for function in functions:
        completion = f" {function.summary}"
        left = size - len((QUESTION + completion).encode())
        code = cut_code(function.code, left)
        if code:
            yield CompletionExample(code + QUESTION, completion, document)


def cut_code(code: str, size: int) -> str:
    """The first whole lines that fit, with the signature and one line at least, else
    nothing.
    """
    lines = code.split("\n")
    kept = ""
    for number, line in enumerate(lines):
        joined = f"{kept}\n{line}" if number else line
        if len(joined.encode()) > size:
            break
        kept = joined
    return kept if "\n" in kept else ""
