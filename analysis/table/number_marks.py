"""Numbers as people and spreadsheets write them: "1.234,5", "100,000,000", "45 %".

A text is a number under a decimal mark, or under none. One that is a number under both
marks, and another number under each, is ambiguous: "1,234" is 1234 or 1.234. Only the
other cells of its column, or the caller, can say which; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

DECIMALS = (".", ",")
"""Decimal marks that are recognized."""

THOUSANDS = (",", ".", " ", "'")
"""Marks between groups of three digits that are recognized."""

SHOWN_COLUMNS = 8
"""How many columns one note describes."""

# Spaces that do not break a line, and typographic apostrophes and signs.
_AS_TYPED = str.maketrans(
    {
        "\N{NO-BREAK SPACE}": " ",
        "\N{NARROW NO-BREAK SPACE}": " ",
        "\N{THIN SPACE}": " ",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{MINUS SIGN}": "-",
    }
)
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?P<body>[0-9.,' ]+)(?P<exponent>[eE][+-]?[0-9]+)?"
)
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?P<mark>[.,' ])[0-9]{3}((?P=mark)[0-9]{3})*")


def check_marks(decimal: str | None, thousands: str | None) -> str | None:
    """The decimal mark that the options say, None if they leave it open.

    Raises:
        ValueError: a mark is not recognized, or both are one.
    """
    if decimal is not None and decimal not in DECIMALS:
        raise ValueError(f"decimal={decimal!r} is no decimal mark; give '.' or ','")
    if thousands is not None and thousands not in THOUSANDS:
        raise ValueError(
            f"thousands={thousands!r} separates no thousands; "
            "give ',', '.', ' ' or \"'\""
        )
    if decimal is not None and decimal == thousands:
        raise ValueError(
            f"decimal={decimal!r} and thousands={thousands!r} are one mark; "
            "leave out one of them"
        )
    if decimal is None and thousands in DECIMALS:
        return "," if thousands == "." else "."
    return decimal


def read_number(text: str, decimal: str) -> float | None:
    """The number that a text is under a decimal mark; None if it is none.

    Thousands may be grouped by the other mark, a space or an apostrophe, in groups of
    exactly three digits. A percentage is divided by 100.
    """
    text = text.translate(_AS_TYPED).strip()
    if text.endswith("%"):
        share = read_number(text[:-1], decimal)
        return None if share is None else share / 100
    found = _NUMBER.fullmatch(text)
    if found is None:
        return _read_plain(text)
    body = found["body"]
    exponent = found["exponent"] or ""
    whole, _, fraction = body.partition(decimal)
    grouped = _GROUPED.fullmatch(whole)
    if grouped is not None and grouped["mark"] != decimal and not exponent:
        whole = whole.replace(grouped["mark"], "")
    is_written_out = re.fullmatch(r"[0-9]*", whole + fraction) is not None
    if not is_written_out or not whole + fraction:
        return None
    if body.endswith(",") or body.startswith(","):
        # "5," and ",5" are pieces of a list as often as numbers.
        return None
    digits = f"{whole}.{fraction}"
    return _read_plain(f"{found['sign']}{digits}{exponent}")


def _read_plain(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def is_number(text: str) -> bool:
    """Whether a text is a number under either decimal mark."""
    return any(read_number(text, mark) is not None for mark in DECIMALS)


@dataclass
class Hints:
    """What the cells of one column say of its decimal mark.

    Attributes:
        evidence: decimal mark -> the first cell that is a number under no other.
        ambiguous: mark in it -> the first cell that is another number under each.
        n_numbers: cells that are a number under some mark.
        n_plain: cells that Python reads as a number.
        n_percent: numbers with a percent sign.
        n_other: cells that are no number.
    """

    evidence: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, str] = field(default_factory=dict)
    n_numbers: int = 0
    n_plain: int = 0
    n_percent: int = 0
    n_other: int = 0


def find_hints(cells: Iterable[object]) -> Hints:
    """The hints in the cells of a column; cells that are no text are missing."""
    hints = Hints()
    for cell in cells:
        if not isinstance(cell, str):
            continue
        values = {mark: read_number(cell, mark) for mark in DECIMALS}
        known = [mark for mark, value in values.items() if value is not None]
        if not known:
            hints.n_other += 1
            continue
        hints.n_numbers += 1
        hints.n_percent += cell.rstrip().endswith("%")
        hints.n_plain += _read_plain(cell) is not None
        if len(known) == 1:
            hints.evidence.setdefault(known[0], cell)
        elif values["."] != values[","] and any(mark in cell for mark in DECIMALS):
            hints.ambiguous.setdefault("," if "," in cell else ".", cell)
    return hints


@dataclass(frozen=True)
class ColumnMark:
    """How the numbers of one column were read.

    Attributes:
        decimal: the decimal mark; "" where every mark gives the same numbers.
        evidence: a cell that is a number under this mark only; "" if there is none.
        is_decided: false where the cells contradict each other or could be two numbers,
            so that some stay text.
    """

    decimal: str = ""
    evidence: str = ""
    is_decided: bool = True


@dataclass(frozen=True, eq=False)
class ConvertedTable:
    """A table with the numbers of its columns read.

    Attributes:
        frame: the table.
        notes: how they were read.
        marks: used column -> how its numbers were read.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...]
    marks: dict[str, ColumnMark]


@dataclass(frozen=True)
class NumberReader:
    """How the numbers of one text file are read.

    Attributes:
        label: the file, for messages.
        decimal: the mark that the caller said; None if none.
        is_plain: its columns are separated by commas, as programs write them, so that
            "1.234" is a decimal number unless another column says otherwise.
    """

    label: str
    decimal: str | None
    is_plain: bool

    def convert(
        self, frame: pd.DataFrame, cells: pd.DataFrame, used: Sequence[str]
    ) -> ConvertedTable:
        """The table with the numbers of its columns read.

        Args:
            frame: the table as pandas reads it.
            cells: the same table, every cell as text.
            used: columns that must hold numbers.

        Raises:
            ValueError: the numbers of a used column are ambiguous.
        """
        hints = {name: find_hints(cells[name]) for name in used}
        converted: dict[str, pd.Series] = {}
        marks: dict[str, ColumnMark] = {}
        read: list[str] = []
        notes: list[str] = []
        for name, hint in hints.items():
            if len(hint.evidence) == 2 and self.decimal is None:
                notes.append(self._describe_conflict(name, hint))
                marks[name] = ColumnMark(is_decided=False)
                continue
            if self._keeps_text(hint):
                doubt = self._describe_ambiguity(name, hint.ambiguous[","], hints)
                notes.append(f"{doubt}; rows with such cells are rejected")
                marks[name] = ColumnMark(is_decided=False)
                continue
            mark = self.decimal or self._choose_mark(name, hints)
            self._check_cells(name, hint, mark)
            marks[name] = ColumnMark()
            if hint.evidence or hint.ambiguous:
                marks[name] = ColumnMark(mark, hint.evidence.get(mark, ""))
            if hint.n_plain == hint.n_numbers and mark == ".":
                # pandas has read it.
                continue
            column, example = _convert_cells(cells.loc[:, name], mark, hint)
            if example:
                converted[name] = column
                read.append(f"{name}: {example}")
        converted |= self._convert_others(cells, hints)
        if read:
            shown = "; ".join(read[:SHOWN_COLUMNS])
            notes.insert(0, f"numbers were read as written: {shown}")
        table = frame.assign(**converted)
        return ConvertedTable(frame=table, notes=tuple(notes), marks=marks)

    def _keeps_text(self, hint: Hints) -> bool:
        """Whether a column has ambiguous cells beside numbers as programs write them:
        the former stay text, and their rows are rejected.
        """
        is_ambiguous = "," in hint.ambiguous and not hint.evidence
        has_plain = self.is_plain and hint.n_plain > 0
        return is_ambiguous and has_plain and self.decimal is None

    def _choose_mark(self, name: str, hints: Mapping[str, Hints]) -> str:
        """The decimal mark of a column whose cells do not contradict each other."""
        hint = hints[name]
        if hint.evidence:
            return next(iter(hint.evidence))
        if not hint.ambiguous:
            return "."
        if "," in hint.ambiguous:
            raise ValueError(self._describe_ambiguity(name, hint.ambiguous[","], hints))
        others = [other for other in hints.values() if other is not hint]
        if self.is_plain:
            # No row of such a table could be used before.
            is_doubtful = any(
                set(other.evidence) == {","} and not other.n_plain for other in others
            )
        else:
            marks = {mark for other in others for mark in other.evidence}
            is_doubtful = marks != {"."}
        if is_doubtful:
            raise ValueError(self._describe_ambiguity(name, hint.ambiguous["."], hints))
        return "."

    def _describe_ambiguity(
        self, name: str, cell: str, hints: Mapping[str, Hints]
    ) -> str:
        mark = "," if "," in cell else "."
        as_thousands = read_number(cell, "." if mark == "," else ",")
        as_decimal = read_number(cell, mark)
        clue = ""
        for other, hint in hints.items():
            for written in hint.evidence.values():
                clue = f" ({other} has {written!r})"
        return (
            f"{self.label}: {name} is {cell!r}, which is {as_thousands:.12g} or "
            f"{as_decimal:.12g}, and no cell of the column says which{clue}; say "
            f"thousands={mark!r} or decimal={mark!r} "
            f"(--thousands '{mark}' or --decimal '{mark}')"
        )

    def _describe_conflict(self, name: str, hint: Hints) -> str:
        """A note on a column in which both marks are decimal, read as pandas does.

        Raises:
            ValueError: a cell of it is ambiguous and programs did not write the file.
        """
        with_point, with_comma = hint.evidence["."], hint.evidence[","]
        text = (
            f"{name} has {with_point!r} and {with_comma!r}, so both marks are decimal "
            "there: write the column with one of them"
        )
        if not self.is_plain and hint.ambiguous:
            cell = next(iter(hint.ambiguous.values()))
            raise ValueError(f"{self.label}: {name} is {cell!r}; {text}")
        return text

    def _check_cells(self, name: str, hint: Hints, mark: str) -> None:
        """Check that no cell contradicts the decimal mark that the caller said."""
        other = "," if mark == "." else "."
        if other in hint.evidence:
            raise ValueError(
                f"{self.label}: {name} is {hint.evidence[other]!r}, which is no number "
                f"with decimal={mark!r}; leave out decimal= and thousands= "
                f"(--decimal, --thousands), or say decimal={other!r}"
            )

    def _convert_others(
        self, cells: pd.DataFrame, hints: Mapping[str, Hints]
    ) -> dict[str, pd.Series]:
        """The columns that nobody asked for and that the file's own mark explains."""
        marks = {mark for hint in hints.values() for mark in hint.evidence}
        mark = self.decimal or next(iter(marks), None)
        if self.is_plain or mark != "," or (self.decimal is None and len(marks) > 1):
            return {}
        converted: dict[str, pd.Series] = {}
        for name in cells.columns:
            if name in hints:
                continue
            hint = find_hints(cells[name])
            is_explained = not hint.n_other and "." not in hint.evidence
            if is_explained and (hint.evidence or hint.ambiguous):
                converted[name] = _convert_cells(cells.loc[:, name], mark, hint)[0]
        return converted


def _convert_cells(cells: pd.Series, mark: str, hint: Hints) -> tuple[pd.Series, str]:
    """The column with its numbers read, and an example of one that Python does not
    read so: "'3,25' is 3.25".

    Texts that are no number stay. So do percentages beside numbers without a percent
    sign, which could be either.
    """
    skips_percent = 0 < hint.n_percent < hint.n_numbers
    values: list[object] = []
    example = ""
    for cell in cells:
        number = read_number(cell, mark) if isinstance(cell, str) else None
        if number is None or (skips_percent and str(cell).rstrip().endswith("%")):
            values.append(cell)
            continue
        values.append(number)
        if not example and _read_plain(cell) != number:
            example = f"{cell!r} is {number:.12g}"
    column = pd.Series(values, index=cells.index, dtype=object)
    if hint.n_other or skips_percent:
        return column, example
    return column.astype(float), example
