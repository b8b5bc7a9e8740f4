"""What was decided when a run table was read, and the command that states it all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.table.number_marks import is_number
from analysis.table.provenance import Provenance
from analysis.table.runs import AS_WRITTEN, CANONICAL, DEFAULTS
from analysis.table.spreadsheets import Layout
from analysis.table.units import split_header_unit
from analysis.table.warnings import is_small_for_ones

# Words of a column's name by which it may hold a role.
_ROLE_WORDS = {
    "N": "n param params parameter parameters nparams size",
    "D": "d token tokens toks ntokens data",
    "C": "c flop flops gflops tflops pflops compute",
    "loss": "loss nll ppl perplexity bpb entropy",
    "trunk": "trunk run group name id",
    "seed": "seed",
    "budget": "budget",
    "loss_se": "se stderr sem",
    "weight": "weight weights",
}
# Words of a column's name that say that it is about another one.
_ERROR_WORDS = {"se", "stderr", "sem", "std", "sd", "error", "err"}
# Cells by which it is judged whether a column holds numbers.
_N_LOOKED_AT = 50
_UNIT_OF_ROLE = {"C": "flops", "budget": "flops", "loss": "nats"}
_WITHOUT_UNIT = (*AS_WRITTEN, "weight", "loss_se")
# Flags of the roles that are not written as --columns.NAME.
_OWN_FLAGS = {"weight": "--weight", "loss_se": "--columns.loss-se"}
_SEPARATOR_NAMES = {"\t": "tab"}


@dataclass(frozen=True)
class Choice:
    """One decision about how a table is read.

    Attributes:
        subject: what was decided, such as "unit of N".
        value: what was taken.
        reason: how it is known.
        option: words of the command line that state it: a flag and its value, a flag
            whose value only the caller knows, or nothing.
        is_stated: whether the caller stated it.
        role: canonical name that it is about; "" if it is about the file.
        is_doubtful: whether it is probably wrong. The option then states another value,
            and is left to the caller.
    """

    subject: str
    value: str
    reason: str
    option: tuple[str, ...] = ()
    is_stated: bool = False
    role: str = ""
    is_doubtful: bool = False


def list_choices(provenance: Provenance) -> list[Choice]:
    """Everything that was decided when a table was read, stated or not."""
    choices = _list_text_choices(provenance)
    for name, column in provenance.columns.items():
        choices.append(describe_column(name, column, name in provenance.stated))
        if name not in _WITHOUT_UNIT:
            choices.append(_describe_unit_choice(provenance, name))
    for name, formula in provenance.formulas.items():
        reason = "no column of it; the two others give it"
        option = (f"--columns.{name}",)
        choices.append(Choice(name, formula, reason, option, role=name))
    return choices + _list_row_choices(provenance)


def _list_text_choices(provenance: Provenance) -> list[Choice]:
    """How a text file is written; nothing for other sources."""
    source = provenance.source
    layout = source.layout
    if layout is None:
        return []
    reason = "no mark at its start says otherwise"
    if layout.encoding != "utf-8":
        reason = "the mark at its start"
    choices = [Choice("encoding", layout.encoding.removesuffix("-sig"), reason)]
    shown = _SEPARATOR_NAMES.get(layout.separator, layout.separator)
    choices.append(
        Choice(
            subject="separator",
            value=shown,
            reason=layout.separator_origin,
            option=("--separator", shown),
            is_stated="separator" in provenance.stated,
        )
    )
    choices.append(_describe_decimal_choice(provenance))
    if "thousands" in provenance.stated:
        mark = provenance.stated["thousands"]
        option = ("--thousands", mark)
        choices.append(Choice("thousands", mark, "the caller", option, True))
    return choices + _list_header_choices(layout)


def _list_header_choices(layout: Layout) -> list[Choice]:
    """What the lines above the rows are, where they are not one header line."""
    choices = []
    if layout.header_lines > 1:
        value = f"{layout.header_lines} lines"
        reason = "the first groups the columns of the second"
        choices.append(Choice("header", value, reason))
    if layout.units:
        value = ", ".join(f"{name} {unit}" for name, unit in layout.units.items())
        choices.append(Choice("row of units", value, "it stands below the header"))
    return choices


def _describe_decimal_choice(provenance: Provenance) -> Choice:
    """The decimal mark of a text file, or of its columns where they differ."""
    marks = provenance.source.marks
    stated = provenance.stated.get("decimal")
    if stated is not None:
        option = ("--decimal", stated)
        return Choice("decimal mark", stated, "the caller", option, True)
    found = {mark.decimal for mark in marks.values() if mark.decimal}
    is_decided = all(mark.is_decided for mark in marks.values())
    if len(found) > 1 or not is_decided:
        parts = []
        for name, mark in marks.items():
            shown = mark.decimal if mark.is_decided else "undecided"
            if shown:
                parts.append(f"{name}: {shown}")
        reason = "the cells of each column; no option states different marks"
        return Choice("decimal mark", ", ".join(parts), reason)
    value = next(iter(found), ".")
    reason = "as programs write numbers"
    for name, mark in marks.items():
        if mark.evidence:
            reason = f"{mark.evidence!r} in {name} is a number under no other"
            break
    return Choice("decimal mark", value, reason, ("--decimal", value))


def describe_column(name: str, column: str, is_stated: bool = False) -> Choice:
    """The choice of a column for a role."""
    option = (_OWN_FLAGS.get(name, f"--columns.{name}"), column)
    if name not in CANONICAL:
        option = ("--variable", f"{name}={column}")
    reason = "the caller" if is_stated else "its name"
    return Choice(name, column, reason, option, is_stated, name)


def _describe_unit_choice(provenance: Provenance, name: str) -> Choice:
    """The unit of a role."""
    is_stated = name in provenance.stated_units
    unit = provenance.units.get(name)
    reason = "the header"
    if is_stated:
        reason = "the caller"
    offered_unit = unit
    is_doubtful = False
    if unit is None:
        unit = offered_unit = _UNIT_OF_ROLE.get(name, "ones")
        reason = "the default; nothing was converted"
        is_doubtful = _looks_like_millions(provenance, name)
    if is_doubtful:
        # Stating the default would silence the warning.
        reason = "the default, but the numbers look like millions or billions"
        offered_unit = "millions"
    return Choice(
        subject=f"unit of {name}",
        value=unit,
        reason=reason,
        option=("--unit", f"{name}={offered_unit}"),
        is_stated=is_stated,
        role=name,
        is_doubtful=is_doubtful,
    )


def _looks_like_millions(provenance: Provenance, name: str) -> bool:
    values = provenance.values[name].to_numpy(float)
    return is_small_for_ones(name, values[np.isfinite(values)])


def _list_row_choices(provenance: Provenance) -> list[Choice]:
    """By which columns rows are judged, and which rows are taken for independent."""
    choices = []
    present = provenance.source.frame.columns
    for column, value in (
        ("status", "rows that are not 'finished' are rejected"),
        ("diverged", "rows in which it is true are rejected"),
    ):
        if column in present:
            reason = "a column of this name; rename it to keep its rows"
            choices.append(Choice(f"column {column}", value, reason))
    if "trunk" not in provenance.columns:
        reason = f"no column is named {' or '.join(DEFAULTS['trunk'])}"
        option = ("--columns.trunk",)
        value = "every row is a run of its own"
        choices.append(Choice("trunk", value, reason, option, role="trunk"))
    if provenance.tuned:
        value = f"the best {provenance.tuned} of each cell of N and D"
        option = ("--tuned", provenance.tuned)
        choices.append(Choice("tuned", value, "the caller", option, True))
    return choices


def list_unused_columns(provenance: Provenance) -> dict[str, tuple[str, ...]]:
    """Column that was not used -> the roles that its name suggests."""
    used = {*provenance.columns.values(), "status", "diverged", "source_row"}
    used.add(provenance.tuned)
    frame = provenance.source.frame
    unused: dict[str, tuple[str, ...]] = {}
    for column in frame.columns:
        if column not in used:
            unused[column] = _suggest_roles(frame.loc[:, column])
    return unused


def _suggest_roles(cells: pd.Series) -> tuple[str, ...]:
    """The roles that the name of a column suggests, if most of its cells can hold them."""
    name = split_header_unit(str(cells.name))[0]
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = set(re.findall(r"[a-z]+", spaced.lower()))
    is_error = bool(words & _ERROR_WORDS)
    known = cells.dropna().head(_N_LOOKED_AT)
    n_numbers = sum(is_number(str(cell)) for cell in known)
    # A crashed run may say so in the place of its loss.
    has_numbers = 2 * n_numbers > len(known)
    roles = []
    for role, text in _ROLE_WORDS.items():
        if not words & set(text.split()):
            continue
        if role in AS_WRITTEN:
            # A name of each row says nothing about which belong together.
            if cells.astype(str).duplicated().any():
                roles.append(role)
        elif has_numbers and is_error == (role == "loss_se"):
            roles.append(role)
    return tuple(roles)


def format_fit_command(path: str, choices: Sequence[Choice]) -> str:
    """The command that fits a table and states every choice that is not doubtful.

    Args:
        path: of the table.
        choices: as `list_choices` gives them.
    """
    words = ["scaling", "fit", _escape_word(path)]
    for choice in choices:
        if len(choice.option) < 2 or choice.is_doubtful:
            continue
        flag, value = choice.option
        # A value with a dash at its start reads as a flag.
        if value.startswith("-") or not value:
            words.append(f"{flag}={value}")
        else:
            words += [flag, value]
    return shlex.join(words)


def format_option(choice: Choice) -> str:
    """The option that states a choice, as it is typed; "" if there is none."""
    if len(choice.option) == 1:
        return f"{choice.option[0]} COLUMN"
    return shlex.join(choice.option)


def _escape_word(path: str) -> str:
    return f"./{path}" if path.startswith("-") else path
