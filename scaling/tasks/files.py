"""A task in a file of one's own: .jsonl, .csv or .parquet, in a layout of `layouts.py`.

The split is by document, see `split.py`; or a second file holds the held-out examples.
An example must not be on both sides. Equal examples of one side count once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from scaling.config.suggestions import did_you_mean
from scaling.data.errors import DataError
from scaling.tasks.chat import STOP
from scaling.tasks.examples import ChoiceExample, Example, TaskData, hash_example
from scaling.tasks.layouts import (
    LAYOUTS,
    MOST_LABELS,
    LabeledText,
    Layout,
    Parsed,
    find_layout,
    parse_row,
)
from scaling.tasks.rows import read_rows
from scaling.tasks.split import Split, separate_examples, split_examples
from scaling.tasks.text_metrics import TEXT_METRICS

HELDOUT_FRACTION = 0.1


def read_task(
    path: Path | str,
    heldout: Path | str | None = None,
    heldout_fraction: float = HELDOUT_FRACTION,
    metrics: Sequence[str] = ("exact_match",),
) -> TaskData:
    """A task from a file.

    Args:
        path: all examples, or those to train on if `heldout` is given.
        heldout: a file with the held-out examples, in the same layout.
        heldout_fraction: of the documents of `path`; 1 holds out all, for a task that
            only evaluates. Not used if `heldout` is given.
        metrics: measures of generated text, names of `TEXT_METRICS`.

    Raises:
        DataError: a file cannot be used; the message names file, line, field and fix.
    """
    for name in metrics:
        if name not in TEXT_METRICS:
            hint = did_you_mean(name, list(TEXT_METRICS))
            raise DataError(f"metrics: unknown metric {name!r}; {hint}")
    path = Path(path)
    layout, rows = _parse_file(path)
    if heldout is None:
        labels = _find_labels(rows, path)
        examples = _make_examples(rows, labels)
        _check_documents(examples)
        split = split_examples(examples.values(), heldout_fraction)
        _check_sides(split, path, heldout_fraction)
        files = [path]
    else:
        heldout = Path(heldout)
        other_layout, other_rows = _parse_file(heldout)
        if other_layout != layout:
            raise DataError(
                f"{heldout}: has the fields ({other_layout.describe()}), {path} has "
                f"({layout.describe()}); write both with the same"
            )
        labels = _find_labels(rows, path)
        _check_labels(other_rows, labels, path)
        examples = _make_examples(rows, labels)
        other_examples = _make_examples(other_rows, labels)
        _check_disjoint(examples, other_examples)
        split = separate_examples(examples.values(), other_examples.values())
        files = [path, heldout]
    everything = (*split.train, *split.heldout)
    return TaskData(
        name=str(path),
        kind=layout.kind,
        train=split.train,
        heldout=split.heldout,
        labels=_find_common_choices(everything),
        metrics=tuple(metrics),
        stop=_choose_stop(everything, layout),
        about={
            "files": {file.name: _hash_file(file) for file in files},
            "layout": layout.name,
            "duplicates": split.duplicates,
        },
    )


def _parse_file(path: Path) -> tuple[Layout, dict[str, Parsed]]:
    """The layout of a file, and its rows by where they stand."""
    layout: Layout | None = None
    rows: dict[str, Parsed] = {}
    for row in read_rows(path):
        found = find_layout(row)
        if layout is not None and found != layout:
            raise DataError(
                f"{row.where}: has the fields ({found.describe()}), the rows before have "
                f"({layout.describe()}); write all rows with the same"
            )
        layout = found
        rows[row.where] = parse_row(row, layout)
    if layout is None:
        needs = "; ".join(f"({layout.describe()})" for layout in LAYOUTS)
        raise DataError(f"{path}: holds no rows; write examples with {needs}")
    return layout, rows


# --- labels ---------------------------------------------------------------------------


def _find_labels(rows: dict[str, Parsed], path: Path) -> tuple[str, ...]:
    """The sorted labels of a `text, label` file; none for the other layouts."""
    first_use: dict[str, str] = {}
    spellings: dict[str, str] = {}
    for where, row in rows.items():
        if not isinstance(row, LabeledText):
            return ()
        first_use.setdefault(row.label, where)
        spelling = spellings.setdefault(row.label.casefold(), row.label)
        if spelling != row.label:
            raise DataError(
                f"{where}: field 'label' = {row.label!r}: stands as {spelling!r} in "
                f"{first_use[spelling]}; write it the same everywhere"
            )
        if len(first_use) > MOST_LABELS:
            raise DataError(
                f"{where}: field 'label' = {row.label!r:.60}: is label number "
                f"{len(first_use)}, at most {MOST_LABELS} are possible; if the labels "
                "are texts, name the fields prompt and completion"
            )
    if len(first_use) < 2:
        raise DataError(
            f"{path}: field 'label': all rows have {next(iter(first_use))!r}; there must "
            "be two or more labels to choose from"
        )
    return tuple(sorted(first_use))


def _check_labels(
    rows: dict[str, Parsed], labels: tuple[str, ...], train: Path
) -> None:
    """Check that the labels of held-out rows are among those to train on."""
    for where, row in rows.items():
        if isinstance(row, LabeledText) and row.label not in labels:
            raise DataError(
                f"{where}: field 'label' = {row.label!r}: does not occur in {train}; "
                f"{did_you_mean(row.label, labels)}"
            )


def _make_examples(
    rows: dict[str, Parsed], labels: tuple[str, ...]
) -> dict[str, Example]:
    """Examples by where they stand."""
    choices = tuple(f" {label}" for label in labels)
    examples: dict[str, Example] = {}
    for where, row in rows.items():
        if isinstance(row, LabeledText):
            examples[where] = ChoiceExample(
                prompt=f"{row.text}\nLabel:",
                choices=choices,
                answer=labels.index(row.label),
                document=row.document,
            )
        else:
            examples[where] = row
    return examples


def _find_common_choices(examples: Iterable[Example]) -> tuple[str, ...] | None:
    """The choices of all examples, if they are the same."""
    found: set[tuple[str, ...]] = set()
    for example in examples:
        if not isinstance(example, ChoiceExample):
            return None
        found.add(example.choices)
    return found.pop() if len(found) == 1 else None


# --- the split ------------------------------------------------------------------------


def _check_sides(split: Split, path: Path, fraction: float) -> None:
    """Check that there are held-out examples, and training examples unless all are
    held out.
    """
    if not split.heldout:
        empty = "held out"
    elif not split.train and fraction < 1:
        empty = "to train on"
    else:
        return
    raise DataError(
        f"{path}: heldout_fraction = {fraction:g}: no example is {empty}; add examples "
        "of other documents, change the fraction, or give a file heldout="
    )


def _check_documents(examples: dict[str, Example]) -> None:
    """Check that equal examples name one document, else they could be on both sides."""
    places: dict[bytes, str] = {}
    for where, example in examples.items():
        first = places.setdefault(hash_example(example), where)
        document = examples[first].document
        if document != example.document:
            raise DataError(
                f"{where}: the same example is in {first} with another document "
                f"({document!r:.60}, here {example.document!r:.60}); name one document "
                "for both or remove one"
            )


def _check_disjoint(train: dict[str, Example], heldout: dict[str, Example]) -> None:
    """Check that no held-out example is one to train on."""
    places = {hash_example(example): where for where, example in train.items()}
    for where, example in heldout.items():
        same = places.get(hash_example(example))
        if same is not None:
            raise DataError(
                f"{where}: the same example is in {same}, to train on; remove it from "
                "one of the files"
            )


def _choose_stop(examples: Sequence[Example], layout: Layout) -> tuple[str, ...]:
    """What ends generated text: something that no right completion holds."""
    if layout.name == "chat":
        return (STOP,)
    completions = [example.pair.completion for example in examples]
    for stop in ("\n", "\n\n"):
        if not any(stop in completion for completion in completions):
            return (stop,)
    return ()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
