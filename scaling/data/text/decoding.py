"""From bytes to text, with a mark for each byte that has no meaning in the encoding.

A text is read before it is known what its undecodable bytes lie in: a document, or a
column that is not used. So each such byte becomes a lone surrogate, which no decoder
gives. `count_sequences` and `replace_marks` tell what stood there.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
from pathlib import Path

COMPRESSED = (".gz", ".zst")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

MARK = "scaling.mark"
"""Error handler of `bytes.decode` and `open` that marks undecodable bytes."""
PASS_OR_MARK = "scaling.pass_or_mark"
"""The same, but surrogates that are encoded in UTF-8 are passed, as `json` does. Which
one it was is lost."""

# The first byte of an undecodable sequence becomes U+DC00 plus the byte, those that
# follow U+DD00 plus the byte: a sequence is replaced by one character, as Python does.
_FIRST = 0xDC00
_FOLLOWING = 0xDD00
_PASSED = "\ud800"  # is no mark
_SEQUENCES = re.compile("[\udc00-\udcff]")
_MARKS = re.compile("[\udc00-\uddff]")
_FOLLOWING_MARKS = re.compile("[\udd00-\uddff]")

WITHOUT_ORDER_MARK = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}
"""Of the encodings whose texts begin with a byte order mark, one that has none."""


def _mark_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    first, *following = error.object[error.start : error.end]
    marks = [_FIRST + first, *(_FOLLOWING + byte for byte in following)]
    return "".join(map(chr, marks)), error.end


def _pass_or_mark(error: UnicodeError) -> tuple[str, int]:
    try:
        _, end = codecs.lookup_error("surrogatepass")(error)
    except UnicodeError:
        return _mark_bytes(error)
    return _PASSED, end


codecs.register_error(MARK, _mark_bytes)
codecs.register_error(PASS_OR_MARK, _pass_or_mark)


def find_undecodable_byte(text: str) -> int | None:
    """The first undecodable byte of a marked text; None if there is none."""
    if text.isascii():
        return None
    found = _SEQUENCES.search(text)
    return None if found is None else ord(found.group()) - _FIRST


def count_sequences(text: str) -> int:
    """Undecodable sequences of a marked text."""
    return 0 if text.isascii() else len(_SEQUENCES.findall(text))


def replace_marks(text: str) -> str:
    """A marked text with U+FFFD for each undecodable sequence."""
    if text.isascii():
        return text
    return _SEQUENCES.sub(REPLACEMENT, _FOLLOWING_MARKS.sub("", text))


def count_bytes(text: str, encoding: str) -> int:
    """Bytes that a marked text was decoded from."""
    name = WITHOUT_ORDER_MARK.get(encoding, encoding)
    decoded, marks = _MARKS.subn("", text)
    return len(decoded.encode(name, "replace")) + marks


def open_bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """The content of a file, decompressed if its suffix says so."""
    if path.suffix == ".gz":
        return gzip.GzipFile(path)
    if path.suffix == ".zst":
        import pyarrow as pa

        stream = pa.input_stream(str(path), compression="zstd")
        return io.BufferedReader(stream)
    return path.open("rb")
