"""JSON lines (.jsonl): an object a line, one field of which is the text."""

from __future__ import annotations

import json
from collections.abc import Iterator

from scaling.data.text.decoding import find_undecodable_byte
from scaling.data.text.reading import SUGGESTED_FIELD, TextFile

_SPACE = " \t\n\r\v\f"
_ORDER_MARK = "\ufeff"


def read_jsonl(file: TextFile) -> Iterator[str]:
    """The field `file.reading.field` of each line. A torn last line, whose writer was cut
    off, is left out.
    """
    reading = file.reading
    # As `json.loads` reads bytes: such documents are left out later, when they are stored.
    passes_surrogates = reading.encoding == "utf-8" and reading.invalid == "error"
    with file.open_text("\n", passes_surrogates) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip(_SPACE):
                continue
            where = f"line {number}"
            try:
                # An order mark stands where files were joined, too.
                record = json.loads(line.removeprefix(_ORDER_MARK))
            except ValueError as error:
                _leave_out_line(file, line, where, error)
                continue
            if _is_torn(file, line):
                file.count_left_out(line, f"{where}: cut off, or not decodable")
                continue
            if not file.can_decode(line, where):
                continue
            text = _find_text(file, record)
            if text is None:
                _leave_out_record(file, line, where, record)
                continue
            yield file.replace_undecodable(text, where)


def _is_torn(file: TextFile, line: str) -> bool:
    """Whether a line is a last one that was cut off within a character."""
    is_last = not line.endswith("\n")
    is_strict = file.reading.invalid == "error"
    return is_last and is_strict and find_undecodable_byte(line) is not None


def _leave_out_line(file: TextFile, line: str, where: str, error: ValueError) -> None:
    """Leave out a line that is not JSON."""
    if not line.endswith("\n"):
        file.count_left_out(line, f"{where}: cut off")
    elif file.can_decode(line, where):
        problem = f"not valid JSON ({error})"
        fix = "correct or remove the line, or set data.invalid = 'skip'"
        file.leave_out(line, where, problem, fix)


def _find_text(file: TextFile, record: object) -> str | None:
    if not isinstance(record, dict):
        return None
    text = record.get(file.reading.field)
    return text if isinstance(text, str) else None


def _leave_out_record(file: TextFile, line: str, where: str, record: object) -> None:
    """Leave out an object without text."""
    name = file.reading.field
    if not isinstance(record, dict):
        found = type(record).__name__
        fix = "write an object a line"
    elif name in record:
        found = f"{name!r} = {json.dumps(record[name]):.60}"
        fix = "correct or remove the line, or set data.invalid = 'skip'"
    else:
        names = sorted(record)
        found = ", ".join(names)
        fix = SUGGESTED_FIELD
    problem = f"needs a field {name!r} with a string; found {found}"
    file.leave_out(line, where, problem, fix)
