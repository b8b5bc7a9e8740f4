"""What the fields of a row mean.

| layout | fields | becomes |
|---|---|---|
| text | `text`, `label` | `{text}\\nLabel:` and a choice among all labels |
| completion | `prompt`, `completion` | as they are, joined with nothing between |
| chat | `messages` | see `chat.py` |
| choices | a question, choices, an answer | `Question: {question}\\nAnswer:` |

The fields of `choices` are those of the documents of lm-evaluation-harness, see
`QUESTIONS`, `CHOICES` and `ANSWERS`. A `query` and a `ctx` are prompts as they are. A
`passage` or `context` stands before the question on a line of its own. A field
`document` or `group` keeps examples on one side of the split. All other fields are
ignored.
"""

from __future__ import annotations

import reprlib
import string
from collections.abc import Iterable
from dataclasses import dataclass

from scaling.data.errors import DataError
from scaling.tasks.chat import Message, format_chat
from scaling.tasks.examples import ChoiceExample, CompletionExample, Kind
from scaling.tasks.rows import Row

QUESTIONS = {
    "question": "Question: {}\nAnswer:",
    "question_stem": "Question: {}\nAnswer:",
    "query": "{}",
    "ctx": "{}",
}
"""Fields that hold a question, and the prompt that each becomes."""
PASSAGES = ("passage", "context")
CHOICES = ("choices", "endings", "options")
ANSWERS = ("answer", "gold", "label", "answerKey")
DOCUMENTS = ("document", "group")
MOST_LABELS = 256
"""Classes of a `text, label` file; each one is scored for each example."""


@dataclass(frozen=True)
class LabeledText:
    """A row of the layout `text`; its choices are known when all rows were read."""

    where: str
    text: str
    label: str
    document: str


Parsed = LabeledText | ChoiceExample | CompletionExample


@dataclass(frozen=True)
class Layout:
    """One way to write examples.

    Attributes:
        name: as in the table above.
        needs: groups of fields, of each of which a row has one.
    """

    name: str
    kind: Kind
    needs: tuple[tuple[str, ...], ...]

    def fits(self, names: Iterable[str]) -> bool:
        """Whether a row with these fields has this layout."""
        present = set(names)
        return all(present.intersection(group) for group in self.needs)

    def describe(self) -> str:
        """The fields, for error messages."""
        return ", ".join(" or ".join(group) for group in self.needs)


LAYOUTS = (
    Layout("text", "choice", (("text",), ("label",))),
    Layout("completion", "completion", (("prompt",), ("completion",))),
    Layout("chat", "completion", (("messages",),)),
    Layout("choices", "choice", (tuple(QUESTIONS), CHOICES, ANSWERS)),
)


def find_layout(row: Row) -> Layout:
    """The layout of a row.

    Raises:
        DataError: it has none, or more than one.
    """
    fitting = [layout for layout in LAYOUTS if layout.fits(row.fields)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(row.fields) or "none"
    if fitting:
        ways = " and as ".join(f"({layout.describe()})" for layout in fitting)
        raise DataError(
            f"{row.where}: the fields are ambiguous, they can be read as {ways}; remove "
            "the fields of all but one"
        )
    known = "; ".join(f"({layout.describe()})" for layout in LAYOUTS)
    hint = ""
    if "text" in row.fields:
        hint = ". For text alone there is the task perplexity:source=PATH"
    raise DataError(
        f"{row.where}: fields {found}: not those of an example; needs {known}{hint}"
    )


def parse_row(row: Row, layout: Layout) -> Parsed:
    """The example of a row.

    Raises:
        DataError: a field is missing, ambiguous, empty or of a wrong type; the message
            names file, line, field and fix.
    """
    try:
        document = _read_document(row.fields)
        if layout.name == "text":
            text = _read_string(row.fields, "text")
            label = read_name(row.fields, "label")
            return LabeledText(row.where, text, label, document)
        if layout.name == "completion":
            prompt = _read_string(row.fields, "prompt")
            completion = _read_string(row.fields, "completion")
            return CompletionExample(prompt, completion, document)
        if layout.name == "chat":
            prompt, completion = format_chat(_read_messages(row.fields["messages"]))
            return CompletionExample(prompt, completion, document)
        return _parse_choices(row.fields, document)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None


# --- single fields --------------------------------------------------------------------


def show_value(value: object) -> str:
    """A value for an error message, shortened where it is long or deep."""
    short = reprlib.Repr()
    short.maxstring = 80
    short.maxother = 80
    return short.repr(value)


def _check_text(text: object, field: str) -> str:
    """A string that a tokenizer can read."""
    if not isinstance(text, str):
        raise DataError(f"field {field!r} = {show_value(text)}: must be a string")
    if not text.strip():
        raise DataError(
            f"field {field!r} = {show_value(text)}: is empty; remove the row"
        )
    if "\0" in text:
        raise DataError(
            f"field {field!r} = {show_value(text)}: holds byte 0, which separates "
            "documents; remove it"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"field {field!r}: not encodable as UTF-8 ({error.reason}); remove the "
            f"character at {error.start}"
        ) from None
    return text


def _read_string(fields: dict[str, object], name: str) -> str:
    return _check_text(fields.get(name), name)


def read_name(fields: dict[str, object], name: str) -> str:
    """A string or a whole number, without white space around it.

    Raises:
        DataError: it is something else, or empty.
    """
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"field {name!r} = {show_value(value)}: must be a string or a whole number"
        )
    return _check_text(str(value), name).strip()


def _find_field(fields: dict[str, object], group: Iterable[str]) -> str:
    """The one field of a group that a row has."""
    present = [name for name in group if name in fields]
    if len(present) == 1:
        return present[0]
    if present:
        raise DataError(
            f"fields {' and '.join(map(repr, present))} say the same thing; remove all "
            "but one"
        )
    raise DataError(f"needs one of the fields {', '.join(group)}; add it")


def _read_document(fields: dict[str, object]) -> str:
    if not any(name in fields for name in DOCUMENTS):
        return ""
    return read_name(fields, _find_field(fields, DOCUMENTS))


def _read_messages(value: object) -> list[Message]:
    if not isinstance(value, list):
        raise DataError(
            f"field 'messages' = {show_value(value)}: must be a list of objects with "
            "the fields role and content; a CSV file cannot hold one, use .jsonl"
        )
    messages = []
    for number, item in enumerate(value, start=1):
        field = f"messages, message {number}"
        if not isinstance(item, dict):
            raise DataError(
                f"field {field!r} = {show_value(item)}: must be an object with the "
                "fields role and content"
            )
        role = _check_text(item.get("role"), f"{field}, role")
        content = _check_text(item.get("content"), f"{field}, content")
        messages.append(Message(role, content))
    return messages


# --- multiple choice ------------------------------------------------------------------


def _parse_choices(fields: dict[str, object], document: str) -> ChoiceExample:
    question = _find_field(fields, QUESTIONS)
    prompt = QUESTIONS[question].format(_read_string(fields, question))
    if any(name in fields for name in PASSAGES):
        passage = _find_field(fields, PASSAGES)
        prompt = f"{_read_string(fields, passage)}\n{prompt}"
    field = _find_field(fields, CHOICES)
    texts, letters = _read_choices(fields[field], field)
    answer = _find_answer(fields, texts, letters)
    choices = tuple(f" {text}" for text in texts)
    return ChoiceExample(prompt, choices, answer, document)


def _read_choices(value: object, field: str) -> tuple[list[str], list[str] | None]:
    """The texts of the choices, and their letters if the row gives them."""
    letters = None
    if isinstance(value, dict):
        letters = _read_names(value.get("label"), f"{field}.label")
        value = value.get("text")
        field = f"{field}.text"
    texts = _read_names(value, field)
    for names, part in ((texts, "texts"), (letters or texts, "labels")):
        if len(names) < 2 or len(set(names)) < len(names):
            raise DataError(
                f"field {field!r}: needs two or more choices with different {part}; "
                f"found {show_value(names)}"
            )
    if letters is not None and len(letters) != len(texts):
        raise DataError(
            f"field {field!r}: has {len(texts)} texts and {len(letters)} labels; give "
            "as many of each"
        )
    return texts, letters


def _read_names(value: object, field: str) -> list[str]:
    if not isinstance(value, list):
        raise DataError(
            f"field {field!r} = {show_value(value)}: must be a list; a CSV file "
            "cannot hold one, use .jsonl"
        )
    return [read_name({field: item}, field) for item in value]


def _find_answer(
    fields: dict[str, object], texts: list[str], letters: list[str] | None
) -> int:
    """The index of the right choice.

    An answer is the label of a choice, if the row gives labels. Else it is an index
    from 0, a letter (A is choice 0), or the text of a choice.

    Raises:
        DataError: the answer is none of these, or means two choices.
    """
    field = _find_field(fields, ANSWERS)
    name = read_name(fields, field)
    meanings: dict[str, int] = {}
    if name in texts:
        meanings["text"] = texts.index(name)
    if letters is not None:
        if name in letters:
            meanings["label"] = letters.index(name)
    elif name in string.ascii_uppercase[: len(texts)]:
        meanings["letter"] = string.ascii_uppercase.index(name)
    elif name.isascii() and name.isdecimal() and int(name[:9]) < len(texts):
        meanings["index"] = int(name[:9])
    if isinstance(fields[field], int) and letters is None and "index" in meanings:
        # A whole number of JSON is an index, even where choices are numbers.
        return meanings["index"]
    if not meanings:
        means = "a label" if letters else "an index from 0, a letter"
        raise DataError(
            f"field {field!r} = {show_value(name)}: is not among the {len(texts)} "
            f"choices; give {means} or the text of one of {show_value(texts)}"
        )
    if len(set(meanings.values())) > 1:
        read_as = " and ".join(f"{i} as {what}" for what, i in meanings.items())
        raise DataError(
            f"field {field!r} = {show_value(name)}: means choice {read_as}; give "
            "the index as a number"
        )
    return next(iter(meanings.values()))
