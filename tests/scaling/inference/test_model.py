"""Losses and logits of a model on text are those of its forward pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ConfigError
from scaling.data import DataError
from scaling.inference.model import TrainedModel
from scaling.inference.scoring import cut_into_rows
from scaling.model.family import build_family

from .conftest import compile_model

MakeTrained = Callable[..., TrainedModel]


def sum_nats(model: TrainedModel, ids: list[int]) -> float:
    """The loss of a sequence within the context, token by token.

    It is padded at its end, which no token sees, so that one program computes all.
    """
    padded = np.zeros((1, model.context + 1), np.int32)
    padded[0, : len(ids)] = ids
    logits = compile_model(model.config)(model.params, padded)[0]
    shares = np.asarray(jax.nn.log_softmax(logits))
    return -sum(float(shares[i, token]) for i, token in enumerate(ids[1:]))


def test_the_loss_of_a_document_counts_its_tokens_and_its_end(
    make_trained: MakeTrained,
) -> None:
    model = make_trained()
    text = "é short"
    found = model.loss(text)
    ids = [0, *text.encode(), 0]
    assert found.tokens == len(ids) - 1
    assert found.bytes == len(ids) - 1
    assert found.loss * found.tokens == pytest.approx(sum_nats(model, ids), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))
    assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_a_long_document_is_cut_where_its_context_ends(
    make_trained: MakeTrained,
) -> None:
    model = make_trained()
    context = model.context
    text = "".join(chr(97 + i * i % 26) for i in range(3 * context + 5))
    ids = [0, *text.encode(), 0]
    nats = 0.0
    for start in range(0, len(ids) - 1, context):
        nats += sum_nats(model, ids[start : start + context + 1])
    assert model.loss(text).loss * (len(ids) - 1) == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("length", [2, 7, 24, 25, 26, 48, 49, 100])
@pytest.mark.parametrize("stride", [None, 1, 5, 24])
def test_every_token_but_the_first_counts_once(length: int, stride: int | None) -> None:
    ids = np.arange(length, dtype=np.int32)
    rows = cut_into_rows(0, ids, 24, stride)
    counted = np.concatenate([row.ids[row.first :] for row in rows])
    assert counted.tolist() == ids[1:].tolist()
    for row in rows:
        assert len(row.ids) <= 25
        assert row.first >= 1
        if stride is not None and row.ids[0] > 0:
            assert len(row.ids) == 25


def test_a_small_stride_gives_each_token_its_full_context(
    make_trained: MakeTrained,
) -> None:
    model = make_trained()
    text = "abcdefghijklmnopqrstuvwxyz" * 2
    ids = [0, *text.encode(), 0]
    nats = 0.0
    for i in range(1, len(ids)):
        window = ids[max(0, i - model.context) : i + 1]
        nats += sum_nats(model, window) - (
            sum_nats(model, window[:-1]) if len(window) > 2 else 0.0
        )
    found = model.loss(text, stride=1)
    assert found.loss * found.tokens == pytest.approx(nats, rel=1e-4)


def test_documents_do_not_see_each_other(make_trained: MakeTrained) -> None:
    model = make_trained()
    texts = ["one", "two " * 20, "", "three"]
    together = model.loss(texts)
    for row, text in zip(together.documents, texts, strict=True):
        alone = model.loss(text)
        assert row[0] == pytest.approx(alone.loss * alone.tokens, rel=1e-5)
        assert row[1:].tolist() == [alone.tokens, alone.bytes]
    reversed_order = model.loss(texts[::-1])
    assert reversed_order.loss == pytest.approx(together.loss, rel=1e-6)
    assert reversed_order.loss_se == pytest.approx(together.loss_se, rel=1e-6)


def test_the_standard_error_is_that_of_a_ratio(make_trained: MakeTrained) -> None:
    """As wide as the spread over samples of documents."""
    model = make_trained()
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(400):
        length = int(rng.integers(3, 40))
        texts.append("".join(chr(97 + c) for c in rng.integers(0, 20, length)))
    whole = model.loss(texts).documents
    means = []
    for _ in range(300):
        nats, tokens, _ = whole[rng.integers(0, 400, 50)].sum(axis=0)
        means.append(nats / tokens)
    found = model.loss(texts[:50])
    assert found.loss_se == pytest.approx(np.std(means), rel=0.3)


def test_logits_are_those_of_the_forward_pass(make_trained: MakeTrained) -> None:
    model = make_trained()
    found = model.logits("abc")
    ids = jnp.asarray([[0, *b"abc"]])
    expected = build_family(model.config).apply(model.params, ids)[0]
    assert found.shape == (4, 256)
    assert np.allclose(found, expected, atol=1e-4)


def test_text_that_cannot_be_used_is_named(make_trained: MakeTrained) -> None:
    model = make_trained()
    with pytest.raises(DataError, match=r"has 31 tokens, must have 1 to .* 24"):
        model.logits("x" * 30)
    with pytest.raises(DataError, match="no token to predict"):
        model.loss([])
    with pytest.raises(ConfigError, match="stride = 25"):
        model.loss("abc", stride=25)
    with pytest.raises(DataError, match="synthetic source"):
        dataclasses.replace(model, tokenizer=None).generate("a")
