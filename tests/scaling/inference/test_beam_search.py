"""Beam search finds what trying every text finds, if it has beams enough."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.inference.beam_search import BeamValues, get_beam_search
from scaling.inference.model import TrainedModel
from scaling.model.family import build_family

MakeTrained = Callable[..., TrainedModel]
V, END, N = 4, 0, 3


def list_texts() -> list[tuple[int, ...]]:
    """All texts of at most N tokens that end, or have N tokens."""
    texts = []
    for length in range(1, N + 1):
        for text in itertools.product(range(V), repeat=length):
            ends_early = END in text[:-1]
            if not ends_early and (text[-1] == END or length == N):
                texts.append(text)
    return texts


@pytest.mark.parametrize(
    "penalty", [pytest.param(0.0, marks=pytest.mark.slow), 0.7, 1.5]
)
def test_it_finds_the_best_of_all_texts(
    make_trained: MakeTrained, penalty: float
) -> None:
    model = make_trained(vocab=V)
    family = build_family(model.config)
    prompts = np.asarray([[END, 1, 2], [END, 3, 0]], np.int32)
    counts = np.asarray([3, 2], np.int32)
    beams = V**N
    search = get_beam_search(model.config, 8, END, beams=beams, capacity=N)
    values = BeamValues(jnp.int32(N), jnp.float32(penalty), jnp.float32(1.0))
    none = np.zeros((2, V), bool)
    found = search(model.params, prompts, counts, none, values)
    for i in range(2):
        read = prompts[i, : counts[i]].tolist()
        scores = {}
        for text in list_texts():
            window = jnp.asarray([[*read, *text]])
            shares = jax.nn.log_softmax(family.apply(model.params, window))[0]
            nats = 0.0
            for k, token in enumerate(text):
                nats += float(shares[len(read) + k - 1, token])
            scores[text] = nats / len(text) ** penalty
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:5]
        for k, text in enumerate(best):
            length = int(found.lengths[i, k])
            assert tuple(found.tokens[i, k, :length].tolist()) == text
            assert float(found.scores[i, k]) == pytest.approx(scores[text], rel=1e-4)


def test_one_beam_is_greedy(make_trained: MakeTrained) -> None:
    model = make_trained(seed=4)
    prompts = ["a", "bcd", "xyz xyz"]
    greedy = model.generate(prompts, temperature=0.0, max_tokens=12)
    found = model.generate(prompts, beams=1, max_tokens=12)
    for one, other in zip(found, greedy, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-4)


def test_more_beams_find_no_less_likely_texts(make_trained: MakeTrained) -> None:
    """Of one length, on average over prompts."""
    model = make_trained(seed=5)
    prompts = [f"prompt {i}" for i in range(12)]
    settings = {"max_tokens": 10, "ends_with_document": False}
    means = []
    for beams in (1, 4, 16):
        found = model.generate(prompts, beams=beams, **settings)
        means.append(np.mean([text.log_probability for text in found]))
    assert means[0] < means[1] <= means[2] + 1e-6


def test_the_best_texts_come_first(make_trained: MakeTrained) -> None:
    model = make_trained(seed=6)
    found = model.generate("ab", beams=6, samples=6, max_tokens=8, length_penalty=0.0)
    scores = [text.log_probability for text in found]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(text.tokens.tolist()) for text in found}) == 6
