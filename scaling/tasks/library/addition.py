"""Addition of two whole numbers: `12+34=` and `46`. Answers are exact, and there are as
many examples as one likes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from scaling.tasks.examples import CompletionExample, TaskData
from scaling.tasks.options import TaskOptions
from scaling.tasks.registry import register_task
from scaling.tasks.split import split_examples


@register_task("addition", "digits", "examples", "reversed", "heldout_fraction", "seed")
def open_addition(options: TaskOptions) -> TaskData:
    """Sums of numbers with at most `digits` digits.

    With `reversed=true` the answer begins with its last digit, which is easier to learn
    (Lee et al. 2023, arXiv:2307.03381). A pair of numbers occurs once, in one order, so
    12+34 is never to train on where 34+12 is held out.
    """
    digits = options.read_integer("digits", 2, least=1, most=18)
    examples = options.read_integer("examples", 5000, least=2, most=1_000_000)
    is_reversed = options.read_flag("reversed", False)
    fraction = options.read_fraction("heldout_fraction", 0.1)
    rng = random.Random(options.read_integer("seed", 0, least=0, most=2**31))
    found = []
    for smaller, larger in draw_pairs(rng, 10**digits, examples):
        first, second = rng.sample((smaller, larger), 2)
        answer = str(smaller + larger)
        if is_reversed:
            answer = answer[::-1]
        document = f"{smaller}+{larger}"
        found.append(CompletionExample(f"{first}+{second}=", answer, document))
    split = split_examples(found, fraction)
    return TaskData(
        name="addition",
        kind="completion",
        train=split.train,
        heldout=split.heldout,
        about={"digits": digits, "reversed": is_reversed, "examples": len(found)},
    )


def draw_pairs(rng: random.Random, below: int, count: int) -> Iterator[tuple[int, int]]:
    """Different unordered pairs of numbers below a limit, all of them if `count` is
    more.
    """
    total = below * (below + 1) // 2
    if total <= 2 * count:
        pairs = [(a, b) for b in range(below) for a in range(b + 1)]
        yield from rng.sample(pairs, min(count, total))
        return
    seen: set[tuple[int, int]] = set()
    while len(seen) < count:
        numbers = sorted((rng.randrange(below), rng.randrange(below)))
        pair = (numbers[0], numbers[1])
        if pair not in seen:
            seen.add(pair)
            yield pair
