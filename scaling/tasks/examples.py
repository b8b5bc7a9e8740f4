"""What a task is made of: examples to train on and examples held out.

A model reads a prompt and a completion joined, with nothing between them: whoever writes
an example puts the space where it belongs, as in `("Capital of Peru?", " Lima")`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from scaling.data.errors import DataError
from scaling.data.examples import Pair

Kind = Literal["choice", "completion", "perplexity"]


@dataclass(frozen=True)
class ChoiceExample:
    """A prompt and its possible continuations; the model picks the likeliest one.

    Attributes:
        choices: at least two, all different.
        answer: index of the right choice, from 0.
        document: what this example was taken from. All examples of a document are on
            the same side of the split, and standard errors count it as one draw. Empty:
            the example stands for itself.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    document: str = ""

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise DataError(
                f"choices = {self.choices!r}: must be two or more different texts"
            )
        if "" in self.choices:
            raise DataError(
                f"choices = {self.choices!r}: a choice is empty; a model needs text to "
                "give a probability to"
            )
        if not 0 <= self.answer < len(self.choices):
            raise DataError(
                f"answer = {self.answer}: must be an index of the "
                f"{len(self.choices)} choices, from 0"
            )

    @property
    def pair(self) -> Pair:
        """The prompt and the right choice."""
        return Pair(self.prompt, self.choices[self.answer])


@dataclass(frozen=True)
class CompletionExample:
    """A prompt and the text that the model should write after it.

    Attributes:
        document: see `ChoiceExample`.
    """

    prompt: str
    completion: str
    document: str = ""

    def __post_init__(self) -> None:
        if not self.completion.strip():
            raise DataError(
                f"completion = {self.completion!r}: must hold text; the prompt is "
                f"{self.prompt[:60]!r}"
            )

    @property
    def pair(self) -> Pair:
        """The prompt and the completion."""
        return Pair(self.prompt, self.completion)


@dataclass(frozen=True)
class PerplexityExample:
    """A text whose probability is measured.

    Attributes:
        document: see `ChoiceExample`.
    """

    text: str
    document: str = ""

    def __post_init__(self) -> None:
        if not self.text:
            raise DataError("text = '': must hold text; leave the document out")

    @property
    def pair(self) -> Pair:
        """An empty prompt and the text."""
        return Pair("", self.text)


Example = ChoiceExample | CompletionExample | PerplexityExample

KINDS: dict[Kind, type[Example]] = {
    "choice": ChoiceExample,
    "completion": CompletionExample,
    "perplexity": PerplexityExample,
}


class TextOrigin(NamedTuple):
    """The text that a task was cut from.

    Attributes:
        source: as `DataConfig.source` names it.
        heldout_fraction: the task's held-out examples come from the documents that
            `DataConfig` holds out at this fraction.
    """

    source: str
    heldout_fraction: float


@dataclass(frozen=True)
class TaskData:
    """Examples of one task.

    Attributes:
        name: what `open_task` was given.
        kind: the type of all examples, see `KINDS`.
        train: examples to fine-tune on and to take shots from; may be empty.
        heldout: examples to evaluate on. They share no document and no example with
            `train`. Both are in the order of their hashes, so that any prefix is a fair
            sample.
        labels: the choices of every example, if they are the same for all.
        metrics: measures of generated text, names of `text_metrics.TEXT_METRICS`.
        stop: generated text ends before the first of these.
        origin: the text that the examples were cut from, if models may be trained on it.
        about: provenance, for example versions of packages.
    """

    name: str
    kind: Kind
    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    labels: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("exact_match",)
    stop: tuple[str, ...] = ("\n",)
    origin: TextOrigin | None = None
    about: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = KINDS[self.kind]
        for example in (*self.train, *self.heldout):
            if not isinstance(example, wanted):
                raise DataError(
                    f"task {self.name!r}: kind = {self.kind!r} needs examples of type "
                    f"{wanted.__name__}; found {type(example).__name__}"
                )

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of all examples, in hexadecimal."""
        digest = hashlib.sha256()
        for split in (self.train, self.heldout):
            for example in split:
                digest.update(hash_example(example))
            digest.update(b"end of split")
        return digest.hexdigest()


def hash_example(example: Example) -> bytes:
    """sha256 of what a model sees of an example and of the right answer."""
    # `dataclasses.asdict` copies every field, which takes ten times as long.
    content = {
        name: value for name, value in vars(example).items() if name != "document"
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


def list_pairs(examples: Sequence[Example]) -> list[Pair]:
    """The training text of examples: a choice example gives its right choice."""
    return [example.pair for example in examples]


# --- few-shot prompts -----------------------------------------------------------------

SEPARATOR = "\n\n"
"""Stands between the examples of a few-shot prompt."""


def draw_shots(
    train: Sequence[Example], count: int, seed: int, index: int
) -> list[Example]:
    """Different training examples to show before the held-out example number `index`.

    The draw depends on `seed` and `index` alone.

    Raises:
        DataError: there are fewer than `count` training examples.
    """
    if not 0 <= count <= len(train):
        raise DataError(
            f"shots = {count}: must lie between 0 and the {len(train)} training "
            "examples of the task"
        )
    return random.Random(f"{seed} {index}").sample(list(train), count)


def make_few_shot_prompt(
    example: Example, shots: Sequence[Example], separator: str = SEPARATOR
) -> str:
    """The prompt of an example after solved ones.

    Args:
        shots: training examples, see `draw_shots`.
        separator: follows each of them.
    """
    solved = [shot.pair.prompt + shot.pair.completion for shot in shots]
    return separator.join([*solved, example.pair.prompt])
