"""Which package a few lines of source are from.

The lines are cut from the documents of the source `code`. Held-out examples are cut from
the documents that `DataConfig` holds out of that source, so a model that was trained on
`code` has not seen them (`registry.check_pretraining`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import random
from collections import Counter

from scaling.config import DataConfig
from scaling.data.sources import InstalledFile, read_code_files
from scaling.tasks.examples import ChoiceExample, TaskData, TextOrigin
from scaling.tasks.options import TaskOptions
from scaling.tasks.registry import register_task
from scaling.tasks.split import split_examples

PACKAGES = (
    "flax",
    "fonttools",
    "jax",
    "matplotlib",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pandas",
    "rich",
    "scipy",
)
"""Those of `CODE_PACKAGES` with a hundred files or more."""
NAMES = (*PACKAGES, "fontTools", "orbax")
"""Lines that hold one of these would give the answer away."""
SMALLEST_PIECE = 40
"""Bytes; fewer say too little."""


@register_task("package_of_file", "pieces", "bytes", "heldout_fraction")
def open_package_of_file(options: TaskOptions) -> TaskData:
    """Pieces of whole lines, with at most `bytes` bytes, at most `pieces` from each
    file.

    Every piece has a line that no other file holds, so neither a license nor a copied
    function is in the task. One in a hundred held-out pieces still stands inside longer
    lines of other files.
    """
    most = options.read_integer("pieces", 10, least=1, most=1000)
    size = options.read_integer("bytes", 90, least=SMALLEST_PIECE, most=100_000)
    fraction = options.read_fraction("heldout_fraction", DataConfig.heldout_fraction)
    files: dict[str, InstalledFile] = {}
    uses: Counter[str] = Counter()
    for file in read_code_files():
        files[hashlib.sha256(file.text.encode()).hexdigest()] = file
        uses.update({line.strip() for line in file.text.splitlines()})
    choices = tuple(f" {package}" for package in PACKAGES)
    examples: list[ChoiceExample] = []
    for digest, file in files.items():
        if file.package not in PACKAGES:
            continue
        answer = PACKAGES.index(file.package)
        pieces = []
        for piece in sorted(set(cut_lines(file.text, size))):
            is_copy = all(uses[line.strip()] > 1 for line in piece.split("\n"))
            if is_telling(piece) and not is_copy:
                pieces.append(piece)
        for piece in random.Random(digest).sample(pieces, min(most, len(pieces))):
            prompt = f"{piece}\n# package:"
            examples.append(ChoiceExample(prompt, choices, answer, document=digest))
    split = split_examples(examples, fraction, bytes.fromhex)
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return TaskData(
        name="package_of_file",
        kind="choice",
        train=split.train,
        heldout=split.heldout,
        labels=choices,
        origin=TextOrigin("code", fraction),
        about={"packages": versions, "duplicates": split.duplicates},
    )


def is_telling(piece: str) -> bool:
    """Whether a piece is long enough and does not name a package."""
    names_package = any(name in piece for name in NAMES)
    return len(piece.encode()) >= SMALLEST_PIECE and not names_package


def cut_lines(text: str, size: int) -> list[str]:
    """Cut a text into pieces of whole lines; longer lines and blank ones are left out."""
    pieces = []
    piece = ""
    for line in text.splitlines():
        joined = f"{piece}\n{line}" if piece else line
        if not line.strip() or len(line.encode()) > size:
            joined = ""
        if piece and len(joined.encode()) > size:
            pieces.append(piece)
            joined = line
        elif piece and not joined:
            pieces.append(piece)
        piece = joined
    return [*pieces, piece] if piece else pieces
