"""Text files (.txt): running text, or documents between end-of-text markers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from scaling.data.text.reading import TextFile

END_OF_TEXT = "<|endoftext|>"
"""Ends a document in a .txt file, as in GPT-2 and TinyStories."""
PIECE = 4096
"""Characters of the documents that one long .txt file is cut into, at least."""
LONGEST_PIECE = 16_384
"""Characters of such a document, at most."""
LONG_FILE = 2**20
"""Bytes; longer .txt files of a folder are cut as well."""


def read_txt(file: TextFile) -> Iterator[str]:
    """One document for each end-of-text marker, or with `file.cut` many of a few thousand
    characters that end at blank lines.

    Without cutting, a corpus in one file would be one document, of which no part could
    be held out.
    """
    with file.open_text(newline="") as text:

        def read_block(size: int) -> str:
            block = text.read(size)
            if file.reading.invalid != "replace":
                return block
            return file.replace_undecodable(block, "its text")

        if file.cut or file.path.stat().st_size > LONG_FILE:
            documents = cut_text(read_block, LONG_FILE)
        else:
            documents = iter(read_block(-1).split(END_OF_TEXT))
        for number, document in zip(itertools.count(1), documents):
            if file.can_decode(document, f"document {number}"):
                yield document


def cut_text(read: Callable[[int], str], block: int) -> Iterator[str]:
    """Cut a stream of text into documents.

    Joined, with the markers between them, the documents are the stream.

    Args:
        read: returns up to so many further characters, none at the end.
        block: characters to read at a time.
    """
    text = ""
    start = 0
    has_more = True
    while has_more or start < len(text):
        if has_more and len(text) - start < LONGEST_PIECE + len(END_OF_TEXT):
            added = read(block)
            text = text[start:] + added
            start = 0
            has_more = bool(added)
            continue
        end, following = _find_document_end(text, start, is_last=not has_more)
        yield text[start:end]
        start = following


def _find_document_end(text: str, start: int, is_last: bool) -> tuple[int, int]:
    """Where the document that begins at `start` ends, and where the next one begins."""
    marker = text.find(END_OF_TEXT, start, start + LONGEST_PIECE + len(END_OF_TEXT))
    if marker >= 0:
        return marker, marker + len(END_OF_TEXT)
    if is_last and len(text) - start <= PIECE:
        return len(text), len(text)
    for boundary in ("\n\n", "\n", " "):
        at = text.find(boundary, start + PIECE, start + LONGEST_PIECE)
        if at >= 0:
            return at + len(boundary), at + len(boundary)
    end = min(start + LONGEST_PIECE, len(text))
    return end, end
