"""Decoding with a cache gives what computing the whole window for every token gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ConfigError, ExpertConfig
from scaling.inference.decoding import CHUNK, count_kept, get_decoder
from scaling.inference.generation import make_batch
from scaling.inference.model import TrainedModel
from scaling.inference.sampling import SamplingConfig, choose_tokens

from .conftest import compile_model

MakeTrained = Callable[..., TrainedModel]
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "learned positions": {"position": "learned"},
    "sinusoidal positions": {"position": "sinusoidal"},
    "gated, tied, layernorm": {
        "activation": "swiglu",
        "tied": True,
        "norm": "layernorm",
        "qk_norm": False,
    },
    "scanned layers": {"scan_layers": "always"},
    "grouped heads, other frequencies": {"n_kv_heads": 1, "rope_base": 500.0},
    "unit scaling, grouped heads": {
        "parametrization": "umup",
        "norm": "nonparametric_rmsnorm",
        "n_kv_heads": 1,
    },
    "gated attention, capped logits": {"attention_gate": True, "logit_cap": 30.0},
    "values of the first layer, grouped heads, windows": {
        "value_residual": True,
        "n_kv_heads": 2,
        "layer_pattern": "fw",
        "window": 5,
    },
    "attention sinks, parallel branches, unit scaling, grouped heads": {
        "attention_sink": True,
        "parallel_blocks": True,
        "parametrization": "umup",
        "n_kv_heads": 2,
    },
    "layers of two kinds": {"layer_pattern": "wn", "window": 5},
    "unit scaling": {"parametrization": "umup", "norm": "nonparametric_rmsnorm"},
    "without residual": {"residual": False},
    "rounded, tied": {"weight_bits": 4, "tied": True},
    "experts": {"experts": ExpertConfig(routed=4, per_token=2, granularity=2)},
    "experts, scanned layers": {
        "experts": ExpertConfig(routed=4, shared=1, balancing="none"),
        "scan_layers": "always",
    },
}


_choose_tokens = jax.jit(choose_tokens, static_argnums=4)


def recompute(
    model: TrainedModel,
    prompt: str,
    count: int,
    sampling: SamplingConfig | None = None,
    key: jax.Array | None = None,
) -> tuple[list[int], list[float]]:
    """The text by one forward pass of the whole window for every token, and the
    log-probabilities.
    """
    sampling = sampling or SamplingConfig(temperature=0.0)
    context = model.config.context
    read = [0, *prompt.encode()]
    window = read[-context:]
    occurred = np.zeros((1, model.config.vocab), bool)
    occurred[0, read] = True
    apply = compile_model(model.config)
    values = sampling.make_values(model.config.vocab)
    tokens: list[int] = []
    log_probabilities: list[float] = []
    for step in range(count):
        padded = np.zeros((1, context), np.int32)
        padded[0, : len(window)] = window
        logits = apply(model.params, padded)[:, len(window) - 1]
        keys = jax.random.fold_in(jax.random.key(0) if key is None else key, step)
        chosen = _choose_tokens(
            logits, jnp.asarray(occurred), keys[None], values, sampling.kind
        )
        token = int(chosen[0])
        tokens.append(token)
        log_probabilities.append(float(jax.nn.log_softmax(logits)[0, token]))
        occurred[0, token] = True
        if token == 0:
            break
        if len(window) == context:
            kept = count_kept(context)
            window = window[context - kept :]
        window = [*window, token]
    return tokens, log_probabilities


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_decoding_equals_recomputation(
    make_trained: MakeTrained, options: dict[str, Any]
) -> None:
    """Past the end of the context too, for prompts of different lengths at once."""
    model = make_trained(**options)
    prompts = [
        "a",
        "abc abc",
        "x" * 23,
        "longer than the context of this model, by far",
    ]
    found = model.generate(prompts, temperature=0.0, max_tokens=40)
    for prompt, text in zip(prompts, found, strict=True):
        tokens, log_probabilities = recompute(model, prompt, 40)
        assert text.tokens.tolist() == tokens
        total = float(np.sum(log_probabilities))
        assert text.log_probability == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5, top_k=7),
        SamplingConfig(top_p=0.8, min_p=0.01),
        SamplingConfig(temperature=0.0, repetition_penalty=1.7),
        SamplingConfig(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2),
    ],
    ids=str,
)
def test_sampling_equals_recomputation(
    make_trained: MakeTrained, sampling: SamplingConfig
) -> None:
    model = make_trained(seed=1)
    settings = {name: getattr(sampling, name) for name in vars(sampling)}
    found = model.generate(["one", "two two"], max_tokens=30, seed=3, **settings)
    for i, text in enumerate(found):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), i), 0)
        tokens, _ = recompute(model, text.prompt, 30, sampling, key)
        assert text.tokens.tolist() == tokens


def test_a_text_does_not_depend_on_its_neighbors(make_trained: MakeTrained) -> None:
    model = make_trained()
    together = model.generate(["a", "bb" * 9, "c"], max_tokens=50, samples=2, seed=5)
    alone = model.generate(["a"], max_tokens=50, samples=2, seed=5)
    assert [text.tokens.tolist() for text in together[:2]] == [
        text.tokens.tolist() for text in alone
    ]
    assert together[0].text != together[1].text


def test_the_seed_decides_the_text(make_trained: MakeTrained) -> None:
    model = make_trained()
    first = model.generate("a", seed=1)[0]
    assert model.generate("a", seed=1)[0].text == first.text
    assert model.generate("a", seed=2)[0].text != first.text


def test_lengths_and_settings_share_programs(make_trained: MakeTrained) -> None:
    model = make_trained(width=24)
    model.generate("abcdefghi", max_tokens=30, temperature=0.7, top_k=5)
    kind = SamplingConfig(temperature=0.7, top_k=5).kind
    decoder = get_decoder(model.config, model.context, kind, 0)
    programs = (decoder.start._cache_size(), decoder.write._cache_size())
    assert programs == (1, 1)
    for count, prompt in enumerate(["abcdefghijkl", "abcdefghij"]):
        model.generate(prompt, max_tokens=40 + count, temperature=0.3, top_p=0.5)
    assert (decoder.start._cache_size(), decoder.write._cache_size()) == programs


def test_a_text_ends_before_the_first_stop_string(make_trained: MakeTrained) -> None:
    model = make_trained(seed=2)
    whole = model.generate("q", max_tokens=60, seed=1, ends_with_document=False)[0]
    middle = whole.text[10:13]
    late = whole.text[20:24]
    settings = {"max_tokens": 60, "seed": 1, "ends_with_document": False}
    text = model.generate("q", stop=[late, middle], **settings)[0]
    assert text.finish == "stop"
    assert text.text == whole.text[: whole.text.find(middle)]
    assert whole.tokens[: len(text.tokens)].tolist() == text.tokens.tolist()
    assert model.tokenizer is not None
    assert middle in model.tokenizer.decode(text.tokens)
    assert middle not in model.tokenizer.decode(text.tokens[:-1])


def test_a_text_ends_with_its_document(make_trained: MakeTrained) -> None:
    """The separator is its last token, and no character of the text."""
    model = make_trained()
    params = {**model.params, "head": model.params["head"].at[:, 0].add(4.0)}
    found = model.replace_params(params).generate("ab", max_tokens=200, samples=8)
    ended = [text for text in found if text.finish == "end"]
    assert ended
    for text in ended:
        assert text.tokens[-1] == 0
        assert 0 not in text.tokens[:-1]
        assert "\0" not in text.text


def test_what_is_shown_grows_to_the_text(make_trained: MakeTrained) -> None:
    shown: list[str] = []
    model = make_trained()
    text = model.generate(
        "ab", max_tokens=3 * CHUNK, show=lambda draft: shown.append(draft.text)
    )[0]
    for before, after in itertools.pairwise(shown):
        assert after.startswith(before)
    assert text.text.startswith(shown[-1])


def test_one_token_of_context_is_enough(make_trained: MakeTrained) -> None:
    model = make_trained(context=1)
    found = model.generate("xy", temperature=0.0, max_tokens=5)[0]
    assert found.tokens.tolist() == recompute(model, "xy", 5)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"min_p": 0.0}, "min_p = 0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"stop": ""}, "empty string"),
        ({"seed": -1}, "seed = -1"),
        ({"beams": 0}, "beams = 0"),
        ({"beams": 2, "samples": 3, "max_tokens": 4}, "at most beams = 2"),
        ({"beams": 2, "stop": "x"}, "stop"),
        ({"beams": 2, "max_tokens": 100}, "model.context = 24"),
        ({"beams": 2, "length_penalty": -1.0}, "length_penalty = -1.0"),
    ],
)
def test_wrong_settings_are_named(
    make_trained: MakeTrained, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        make_trained().generate("a", **settings)


def test_rows_that_fill_a_batch_up_are_done(make_trained: MakeTrained) -> None:
    from scaling.inference.generation import Draft

    drafts = []
    for i in range(3):
        drafts.append(Draft((i, 0), "a", np.asarray([0, 97], np.int32)))
    batch = make_batch(make_trained().config, drafts, 4)
    assert batch.is_done.tolist() == [False, False, False, True]
