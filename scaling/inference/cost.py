"""What writing text costs: FLOPs and bytes, counted, and tokens per second, measured.

FLOPs are counted as those of training are (`scaling.model.flops`): the products of
matrices alone, two for each weight and token, and attention over the positions that a
token sees. Reading a prompt computes the logits of its last token only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from scaling.config import ArchitectureConfig, ConfigError, ModelConfig, require_decoder
from scaling.inference.decoding import (
    CHUNK,
    DecodeState,
    choose_cache_length,
    get_decoder,
    make_row_keys,
    round_up_to_power_of_two,
)
from scaling.inference.sampling import SamplingConfig
from scaling.model.accounting import list_attention_products, sum_seen_positions
from scaling.model.architecture import Params
from scaling.model.family import build_family, require_next_tokens
from scaling.model.flops import count_parameters

_PARAMETER_BYTES = 4


class InferenceCost(NamedTuple):
    """What some sequences cost.

    Attributes:
        prefill_flops: To read the prompts.
        decode_flops: To write all new tokens.
        flops_per_new_token: The mean over the new tokens, prompts included.
        parameter_bytes: Of the model as it is held, in float32.
        cache_bytes: Of the keys and values of all sequences at their end.
    """

    prefill_flops: float
    decode_flops: float
    flops_per_new_token: float
    parameter_bytes: float
    cache_bytes: float


def count_cost(
    config: ArchitectureConfig, prompt_tokens: int, new_tokens: int, batch: int = 1
) -> InferenceCost:
    """What `batch` sequences of one length cost.

    Args:
        config: The model.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens that are written after it.
        batch: Number of sequences.

    Raises:
        ConfigError: a number is below 1, a sequence is longer than the context, or the
            model is no decoder.
    """
    check_lengths(config, prompt_tokens, new_tokens, batch)
    decoder = require_decoder(config, "the cost of inference")
    require_next_tokens(decoder, "be costed as a writer of texts")
    end = prompt_tokens + new_tokens
    prefill = batch * count_forward_flops(decoder, 0, prompt_tokens, logits=1)
    # The last token that is written is not read any more.
    decode = batch * count_forward_flops(
        decoder, prompt_tokens, end - 1, logits=new_tokens - 1
    )
    return InferenceCost(
        prefill_flops=prefill,
        decode_flops=decode,
        flops_per_new_token=(prefill + decode) / (batch * new_tokens),
        parameter_bytes=float(_PARAMETER_BYTES * count_parameters(config).n_total),
        cache_bytes=float(batch * end * count_cache_bytes(config)),
    )


def count_forward_flops(
    config: ModelConfig, start: int, stop: int, logits: int
) -> float:
    """FLOPs to compute the tokens at positions `start` to `stop` - 1 behind a cache.

    Args:
        config: The model.
        start: The first position.
        stop: The position after the last.
        logits: Number of tokens whose logits are computed.
    """
    head = config.width * config.vocab
    blocks = count_parameters(config).n_matmul - head
    width = sum(product.width for product in list_attention_products(config))
    matrices = 2.0 * blocks * (stop - start)
    attention = 2.0 * width * sum_seen_positions(config, start, stop)
    return matrices + attention + 2.0 * head * logits


def count_cache_bytes(config: ArchitectureConfig) -> int:
    """Bytes of the keys and values of one token in all layers."""
    cache = jax.eval_shape(lambda: build_family(config).make_cache(rows=1, length=1))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(cache))


class InferenceSpeed(NamedTuple):
    """Tokens per second of all sequences together, on this machine.

    Attributes:
        prefill_tokens_per_second: While prompts are read.
        decode_tokens_per_second: While tokens are written.
    """

    prefill_tokens_per_second: float
    decode_tokens_per_second: float


def measure_speed(
    config: ArchitectureConfig,
    params: Params,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
    rounds: int = 5,
) -> InferenceSpeed:
    """Time the compiled programs on random prompts; the median of some rounds.

    Args:
        config: A model whose layers are not scanned.
        params: Its parameters.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens that are written after it.
        batch: Number of sequences.
        rounds: Timed rounds, after one that compiles.

    Raises:
        ConfigError: see `count_cost`.
    """
    check_lengths(config, prompt_tokens, new_tokens, batch)
    length = choose_cache_length(config, prompt_tokens + new_tokens)
    sampling = SamplingConfig(temperature=0.0)
    decoder = get_decoder(config, length, sampling.kind, end=-1)
    width = min(length, round_up_to_power_of_two(prompt_tokens))
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, config.vocab, (batch, width), dtype=np.int32)
    counts = np.full(batch, prompt_tokens, np.int32)
    has_occurred = np.zeros((batch, config.vocab), bool)
    is_done = np.zeros(batch, bool)
    keys = make_row_keys(0, np.zeros((batch, 2), np.int64))
    values = sampling.make_values(config.vocab)

    def read_prompts() -> DecodeState:
        return decoder.start(params, prompts, counts, has_occurred, is_done)

    def write_tokens() -> None:
        state = jax.block_until_ready(read_prompts())
        started = time.perf_counter()
        for written in range(0, new_tokens, CHUNK):
            count = np.int32(min(CHUNK, new_tokens - written))
            state, _ = decoder.write(params, state, count, keys, values)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)

    prefill = _time_call(read_prompts, rounds)
    seconds: list[float] = []
    for _ in range(rounds + 1):
        write_tokens()
    decode = float(np.median(seconds[1:]))
    return InferenceSpeed(
        prefill_tokens_per_second=batch * prompt_tokens / prefill,
        decode_tokens_per_second=batch * new_tokens / decode,
    )


def _time_call(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, after one that compiles."""
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


def check_lengths(
    config: ArchitectureConfig, prompt_tokens: int, new_tokens: int, batch: int
) -> None:
    """Check that sequences of these lengths fit the model.

    Raises:
        ConfigError: they do not.
    """
    named = {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "batch": batch,
    }
    for name, value in named.items():
        if value < 1:
            raise ConfigError(f"{name} = {value}: must be at least 1")
    if prompt_tokens + new_tokens > config.context:
        raise ConfigError(
            f"prompt_tokens + new_tokens = {prompt_tokens + new_tokens}: must be at most "
            f"model.context = {config.context}"
        )
