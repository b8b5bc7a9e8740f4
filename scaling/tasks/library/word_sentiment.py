"""Whether a word is positive or negative, from the lexicon of VADER (Hutto and Gilbert
2014), which the package `vaderSentiment` ships.

Ten raters scored each entry from -4 to 4, and the label is the sign of the mean. This is
the sentiment of single words, not of sentences. Words that begin with the same four
letters, as `happy` and `happiness`, are on one side of the split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scaling.tasks.examples import ChoiceExample, TaskData
from scaling.tasks.options import TaskOptions
from scaling.tasks.packages import find_package_file, find_version
from scaling.tasks.registry import register_task
from scaling.tasks.split import split_examples

CHOICES = (" negative", " positive")
STEM = 4
"""Letters that words of one document share."""


@register_task("word_sentiment", "heldout_fraction")
def open_word_sentiment(options: TaskOptions) -> TaskData:
    """The words of the lexicon that are written in letters alone."""
    fraction = options.read_fraction("heldout_fraction", 0.2)
    wanted_by = f"task = {options.spec!r}"
    version = find_version("vaderSentiment", wanted_by)
    name = "vaderSentiment/vader_lexicon.txt"
    path = find_package_file("vaderSentiment", name, wanted_by)
    examples = []
    for word, valence in read_lexicon(path):
        if word.isascii() and word.isalpha() and valence != 0:
            prompt = f"Word: {word}\nSentiment:"
            answer = int(valence > 0)
            examples.append(ChoiceExample(prompt, CHOICES, answer, word[:STEM].lower()))
    split = split_examples(examples, fraction)
    return TaskData(
        name="word_sentiment",
        kind="choice",
        train=split.train,
        heldout=split.heldout,
        labels=CHOICES,
        about={
            "packages": {"vaderSentiment": version},
            "duplicates": split.duplicates,
        },
    )


def read_lexicon(path: Path) -> Iterator[tuple[str, float]]:
    """Words and their mean valence."""
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = line.split("\t")
        if len(cells) >= 2:
            yield cells[0], float(cells[1])
