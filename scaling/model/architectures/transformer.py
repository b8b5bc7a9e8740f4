"""The model: a decoder-only Transformer of any width and depth.

It is a Flax NNX module that is used as pure functions (`scaling.model.family`). Every
parameter carries its role and its rule as metadata.

Axes: B batch, T position, D width, H heads, K head dimension, I and O the two sides of
a matrix (O all outputs of matrices that share one product), F feed-forward,
V vocabulary, L layers, S positions of a cache, C context, G heads of keys and values,
E experts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from scaling.config import ArchitectureConfig, ConfigError, ModelConfig
from scaling.model import accounting
from scaling.model.architecture import (
    Architecture,
    Call,
    Key,
    Option,
    ParameterCounts,
    Params,
    Tap,
    TrainingTerms,
    pass_through,
)
from scaling.model.experts import MixtureOfExperts, Routing
from scaling.model.kernels import cross_entropy, split_heads
from scaling.model.layers import (
    FeedForward,
    Linear,
    Norm,
    apply_dropout,
    make_learned_scale,
    make_weight,
    multiply_by_scale,
)
from scaling.model.ops import Factor, ResidualWeights, apply_multiplier
from scaling.model.parametrization import Parametrization, bind_parametrization
from scaling.model.positions import (
    Layout,
    apply_rope,
    lay_out_segments,
    sinusoidal_encodings,
    take_positions,
)
from scaling.model.quantization import read_matrix
from scaling.model.sharding_axes import split_rows

BlockWeights = tuple[ResidualWeights, ResidualWeights]
"""Residual weights of the attention branch and of the feed-forward branch."""

ApplyBlock = Callable[..., tuple[Array, Routing | None, Array | None]]
"""Computes a block of its structure and its state."""

Values = Float[Array, "B G T K"]
"""The values of the first layer, where later ones read them (`value_residual`)."""

_BRANCHES = ("attention", "feed_forward")


def _tap_in_block(tap: Tap, block: str, name: str, x: Array) -> Array:
    return tap(f"{block}.{name}", x)


class LayerCache(NamedTuple):
    """Keys and values of one layer, at positions 0 to S - 1."""

    keys: Float[Array, "B G S K"]
    values: Float[Array, "B G S K"]


def _write_to_cache(
    cached: Float[Array, "B G S K"],
    new: Float[Array, "B G T K"],
    starts: Int[Array, " B"],
) -> Float[Array, "B G S K"]:
    """The cache with T new entries of each sequence, from its own start on."""

    def write_one(
        cached: Float[Array, "G S K"], new: Float[Array, "G T K"], start: Array
    ) -> Float[Array, "G S K"]:
        return jax.lax.dynamic_update_slice_in_dim(cached, new, start, axis=1)

    return jax.vmap(write_one)(cached, new.astype(cached.dtype), starts)


class Attention(nnx.Module):
    """Causal multi-head self-attention. Groups of heads may share keys and values.

    Its kind is a letter of `ModelConfig.layer_pattern`.
    """

    def __init__(
        self,
        config: ModelConfig,
        rules: Parametrization,
        rngs: nnx.Rngs,
        kind: str,
        *,
        is_first: bool,
    ) -> None:
        inner = config.heads * config.key_dim
        shared = config.kv_heads * config.key_dim
        gate = (inner,) if config.attention_gate else ()
        # With both numbers set, the width of all heads does not grow with the model's.
        heads_grow = config.n_heads is None or config.head_dim is None
        self.qkv = Linear(
            rules,
            rngs,
            "hidden",
            (inner, shared, shared, *gate),
            fan_in=config.width,
            base_fan_in=config.base_width,
            weight_bits=config.weight_bits,
        )
        self.out = Linear(
            rules,
            rngs,
            "residual_out",
            (config.width,),
            fan_in=inner,
            base_fan_in=config.base_width if heads_grow else inner,
            zero_init=config.zero_init_outputs,
            weight_bits=config.weight_bits,
        )
        self.q_norm = Norm(config.qk_norm_kind, rules, rngs, config.key_dim)
        self.k_norm = Norm(config.qk_norm_kind, rules, rngs, config.key_dim)
        self.heads = (config.heads, config.kv_heads, config.kv_heads)
        self.splits = np.cumsum((inner, shared, shared, *gate))[:-1].tolist()
        self.has_gate = config.attention_gate
        sink = None
        if config.attention_sink:
            # A vector that is added within the softmax, whose logits keep their size as
            # the width grows: it starts at 0 at the rate of a bias.
            sink = make_weight(
                rules, rngs, "bias", (config.heads,), fan_in=config.heads
            )
        self.sink = sink
        self.shows_values = config.value_residual and is_first
        mix = None
        if config.value_residual and not is_first:
            mix = make_weight(rules, rngs, "gain", (2,), fan_in=2, start=0.5)
        self.mix = mix
        self.context = config.context
        self.has_rope = config.position == "rope" and kind != "n"
        self.window = config.window if kind == "w" else None
        self.prefix = config.prefix_tokens
        self.rope_base = config.rope_base
        self.ops = rules.ops
        self.scale = rules.scale_attention(config.key_dim, config.base_key_dim)

    def __call__(
        self,
        x_BxTxD: Float[Array, "B T D"],
        layout: Layout | None = None,
        first: Values | None = None,
    ) -> tuple[Float[Array, "B T D"], Values | None]:
        """What the branch writes, and its values if it is the layer that shows them."""
        if layout is None:
            q, k, v, gate = self._project(x_BxTxD, first=first)
            sink = self._read_sink(x_BxTxD)
            y = self.ops.attend(
                q, k, v, self.scale, window=self.window, prefix=self.prefix, sink=sink
            )
            return self._join_heads(y, gate), self._show_values(v)
        q, k, v, gate = self._project(x_BxTxD, layout.positions, first)
        sink = self._read_sink(x_BxTxD)
        y = self.ops.attend(
            q, k, v, self.scale, layout.segments, self.window, sink=sink
        )
        return self._join_heads(y, gate), self._show_values(v)

    def extend(
        self,
        x_BxTxD: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        cache: LayerCache,
        first: Values | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache, Values | None]:
        """Attention of new tokens to themselves and to those of the cache, the cache with
        them, and their values if this is the layer that shows them.
        """
        q, k, v, gate = self._project(x_BxTxD, positions, first)
        starts = positions[:, 0]
        cache = LayerCache(
            keys=_write_to_cache(cache.keys, k, starts),
            values=_write_to_cache(cache.values, v, starts),
        )
        y = self.ops.attend_to_cache(
            q,
            cache.keys,
            cache.values,
            positions,
            self.scale,
            self.window,
            sink=self._read_sink(x_BxTxD),
        )
        return self._join_heads(y, gate), cache, self._show_values(v)

    def _project(
        self,
        x_BxTxD: Float[Array, "B T D"],
        positions: Int[Array, "B T"] | None = None,
        first: Values | None = None,
    ) -> tuple[Array, Array, Array, Array | None]:
        """Queries (B, H, T, K), keys and values (B, G, T, K), and the gates (B, T, HK) if
        there are any.
        """
        *q_k_v, gate = jnp.split(self.qkv(x_BxTxD), self.splits, axis=-1)
        if not self.has_gate:
            q_k_v, gate = [*q_k_v, gate], None
        q, k, v = (split_heads(*pair) for pair in zip(q_k_v, self.heads, strict=True))
        q = self.q_norm(q)
        k = self.k_norm(k)
        if self.mix is not None and first is not None:
            mix = self.ops.read_vector(self.mix[...], x_BxTxD)
            v = self.ops.mix_values(first, v, mix)
        if self.has_rope:
            context = None if positions is None else self.context
            q = apply_rope(q, positions, context, self.rope_base)
            k = apply_rope(k, positions, context, self.rope_base)
        return q, k, v, gate

    def _show_values(self, v: Values) -> Values | None:
        return v if self.shows_values else None

    def _read_sink(self, x_BxTxD: Float[Array, "B T D"]) -> Float[Array, " H"] | None:
        """The sinks' logits, if there are any."""
        if self.sink is None:
            return None
        return self.ops.read_vector(self.sink[...], x_BxTxD)

    def _join_heads(
        self, y_BxHxTxK: Float[Array, "B H T K"], gate: Float[Array, "B T _"] | None
    ) -> Float[Array, "B T D"]:
        B, _, T, _ = y_BxHxTxK.shape
        y = jnp.moveaxis(y_BxHxTxK, 1, 2).reshape(B, T, -1)
        if gate is not None:
            y = self.ops.apply_gate(y, gate)
        return self.out(y)


class Block(nnx.Module):
    """An attention branch and a feed-forward branch, each behind a norm; parallel ones are
    both behind one norm.

    The feed-forward branch is dense or a mixture of experts.
    """

    def __init__(
        self,
        config: ModelConfig,
        rules: Parametrization,
        rngs: nnx.Rngs,
        kind: str,
        *,
        is_first: bool,
    ) -> None:
        self.is_parallel = config.parallel_blocks
        readers = ("both",) if self.is_parallel else _BRANCHES
        self.norms = nnx.List(
            [Norm(config.norm, rules, rngs, config.width) for _ in readers]
        )
        attention = Attention(config, rules, rngs, kind, is_first=is_first)
        if config.n_experts > 0:
            feed_forward = MixtureOfExperts(config, rules, rngs)
        else:
            feed_forward = FeedForward(
                rules,
                rngs,
                config.d_ff,
                activation=config.activation,
                zero_init=config.zero_init_outputs,
                weight_bits=config.weight_bits,
            )
        self.branches = nnx.List([attention, feed_forward])
        self.ops = rules.ops
        self.dropout = config.dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        weights: BlockWeights,
        key: Key,
        tap: Tap = pass_through,
        layout: Layout | None = None,
        first: Values | None = None,
    ) -> tuple[Float[Array, "B T D"], Routing | None, Values | None]:
        """The residual stream after both branches, what the router did, and the values if
        this is the layer that shows them.
        """
        routing = None
        values = None
        keys = [None, None] if key is None else list(jax.random.split(key))
        x, inputs = self._read_at_once(x, weights)
        for i, name in enumerate(_BRANCHES):
            skip, y = self._read_stream(i, x, weights, inputs)
            branch = self.branches[i]
            if isinstance(branch, Attention):
                y, values = branch(y, layout, first)
            elif isinstance(branch, MixtureOfExperts):
                y, routing = branch(y)
            else:
                y = branch(y)
            y = tap(name, apply_dropout(y, self.dropout, keys[i]))
            x = self.ops.join_residual(skip, y, weights[i])
        return x, routing, values

    def extend(
        self,
        x: Float[Array, "B T D"],
        weights: BlockWeights,
        positions: Int[Array, "B T"],
        cache: LayerCache,
        first: Values | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache, Values | None]:
        """`__call__` for new tokens, whose attention reads and writes the cache."""
        attention, feed_forward = self.branches
        assert isinstance(attention, Attention)
        x, inputs = self._read_at_once(x, weights)
        skip, y = self._read_stream(0, x, weights, inputs)
        y, cache, values = attention.extend(y, positions, cache, first)
        x = self.ops.join_residual(skip, y, weights[0])
        skip, y = self._read_stream(1, x, weights, inputs)
        if isinstance(feed_forward, MixtureOfExperts):
            y, _ = feed_forward(y)
        else:
            assert isinstance(feed_forward, FeedForward)
            y = feed_forward(y)
        return self.ops.join_residual(skip, y, weights[1]), cache, values

    def _read_stream(
        self,
        i: int,
        x: Float[Array, "B T D"],
        weights: BlockWeights,
        inputs: list[Float[Array, "B T D"]] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """What a branch is added to, and what it reads."""
        if inputs is not None:
            return x, inputs[i]
        skip, x = self.ops.split_residual(x, weights[i])
        return skip, self.norms[i](x)

    def _read_at_once(
        self, x: Float[Array, "B T D"], weights: BlockWeights
    ) -> tuple[Float[Array, "B T D"], list[Float[Array, "B T D"]] | None]:
        """What the branches are added to, and, if they are parallel, what each reads.

        The attention branch is added first, so that its output passes both skip weights.
        The stream and what both branches read are split in the reverse order. They are
        split behind the norm, so that gradients have their weights where they meet in it.
        """
        if not self.is_parallel:
            return x, None
        shared = self.norms[0](x)
        inputs: list[Float[Array, "B T D"]] = []
        for branch in reversed(weights):
            x, _ = self.ops.split_residual(x, branch)
            shared, read = self.ops.split_residual(shared, branch)
            inputs.insert(0, read)
        return x, inputs


class Transformer(Architecture):
    """Tokens to logits.

    The layers are a list of blocks. If `config.scanned`, they are one block whose
    parameters have a leading layer axis.

    The tap is called with "embedding"; for each block i with "block{i}.attention" and
    "block{i}.feed_forward" (what the branches write) and "block{i}" (the residual stream
    after it); "final_norm"; "logits".

    Raises:
        ConfigError: the layers are scanned, and there is a tap or a cache.
    """

    Config = ModelConfig
    honors: ClassVar[frozenset[Option]] = frozenset(
        {"dropout", "remat", "segments", "unit_scaling"}
    )

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        rules = bind_parametrization(config)
        width = config.width
        vocab = config.vocab
        self.config = config
        self.rules = rules
        self.embedding = make_weight(
            rules, rngs, "embedding", (config.input_ids, width), fan_in=vocab
        )
        position = None
        if config.position == "learned":
            position = make_weight(
                rules, rngs, "embedding", (config.context, width), fan_in=vocab
            )
        self.position = position
        blocks = [
            Block(config, rules, rngs, kind, is_first=layer == 0)
            for layer, kind in enumerate(config.layer_kinds)
        ]
        self.blocks = _stack_blocks(blocks) if config.scanned else nnx.List(blocks)
        future = None
        if config.future_tokens > 0:
            future = nnx.List(
                [
                    Block(config, rules, rngs, "f", is_first=False)
                    for _ in range(config.future_tokens)
                ]
            )
        self.norm = Norm(config.norm, rules, rngs, width, is_final=True)
        head = None
        if not config.tied:
            head = make_weight(
                rules,
                rngs,
                "readout",
                (width, vocab),
                fan_in=width,
                base_fan_in=config.base_width,
                zero_init=config.zero_init_outputs,
            )
        self.head = head
        self.future = future
        self.head_scale = make_learned_scale(rules, rngs, vocab)
        self.in_multiplier = rules.rule("embedding", vocab).multiplier
        self.out_multiplier = rules.rule("readout", width, config.base_width).multiplier

    def __call__(
        self, tokens_BxT: Int[Array, "B T"], call: Call
    ) -> Float[Array, "B T V"]:
        x, _ = self._compute_stream(tokens_BxT, call)
        return self.read_out(x, call.tap)

    def apply_for_training(
        self, tokens_BxT: Int[Array, "B T"], call: Call
    ) -> tuple[Float[Array, "B T V"], TrainingTerms | None]:
        x, routing = self._compute_stream(tokens_BxT, call)
        logits = self.read_out(x, call.tap)
        if self.future is not None:
            losses = self._compute_future_losses(x, tokens_BxT, call)
            return logits, TrainingTerms(losses, choices=None)
        if routing is None:
            return logits, None
        return logits, TrainingTerms(routing.losses, routing.counts)

    def _compute_stream(
        self, tokens_BxT: Int[Array, "B T"], call: Call
    ) -> tuple[Float[Array, "B T D"], Routing | None]:
        """The residual stream after the layers, and what their routers did."""
        layout = None if call.segments is None else lay_out_segments(call.segments)
        x = self._embed(tokens_BxT, None if layout is None else layout.positions)
        embedding_key = None
        layers_key = None
        if call.key is not None:
            embedding_key, layers_key = jax.random.split(call.key)
        x = apply_dropout(x, self.config.dropout, embedding_key)
        x = call.tap("embedding", x)
        return self._apply_layers(x, layers_key, call.tap, call.unroll, layout)

    def _compute_future_losses(
        self, x: Float[Array, "B T D"], tokens: Int[Array, "B T"], call: Call
    ) -> Float[Array, "B T"]:
        """What the prediction of tokens beyond the next adds to the loss of each token.

        Where the window or the sequence of a token ends before such a token, nothing is
        added.
        """
        assert self.future is not None
        segments = call.segments
        layout = None if segments is None else lay_out_segments(segments)
        weights = self._list_residual_weights()[-1]
        total = jnp.zeros(tokens.shape)
        for i, block in enumerate(self.future):
            ahead = i + 2
            key = None if call.key is None else jax.random.fold_in(call.key, ahead)
            graph, state = nnx.split(block)
            apply_block = self._choose_apply_block()
            y, _, _ = apply_block(graph, state, x, weights, key, layout)
            losses = cross_entropy(self.read_out(y)[:, :-ahead], tokens[:, ahead:])
            if segments is not None:
                losses *= segments[:, :-ahead] == segments[:, ahead:]
            total += jnp.pad(losses, ((0, 0), (0, ahead)))
        return self.config.future_weight * total / len(self.future)

    def _choose_apply_block(self) -> ApplyBlock:
        """`_apply_block`, whose activations are recomputed in the backward pass if the
        configuration says so.
        """
        if self.config.remat:
            return jax.checkpoint(_apply_block, static_argnums=(0,))
        return _apply_block

    @classmethod
    def drop_training_layers(
        cls, config: ArchitectureConfig, params: Params
    ) -> tuple[ArchitectureConfig, Params]:
        """The decoder without the layers that predict further tokens."""
        model = _require_model_config(config)
        if model.future_tokens == 0:
            return config, params
        kept = {name: value for name, value in params.items() if name != "future"}
        return dataclasses.replace(model, future_tokens=0), kept

    @classmethod
    def count_parameters(cls, config: ArchitectureConfig) -> ParameterCounts:
        return accounting.count_parameters(_require_model_config(config))

    @classmethod
    def count_forward_flops(
        cls, config: ArchitectureConfig, *, causal: bool = True
    ) -> float:
        model = _require_model_config(config)
        return accounting.count_forward_flops(model, causal=causal)

    @classmethod
    def count_layer_bytes(cls, config: ArchitectureConfig) -> int:
        return accounting.count_layer_bytes(_require_model_config(config))

    @classmethod
    def make_cache(
        cls, config: ArchitectureConfig, rows: int, length: int
    ) -> tuple[LayerCache, ...]:
        """An empty cache of keys and values."""
        model = _require_model_config(config)
        shape = (rows, model.kv_heads, length, model.key_dim)
        empty = jnp.zeros(shape, model.dtype)
        return tuple(LayerCache(empty, empty) for _ in range(model.depth))

    def extend(
        self,
        tokens_BxT: Int[Array, "B T"],
        starts_B: Int[Array, " B"],
        cache: tuple[LayerCache, ...],
    ) -> tuple[Float[Array, "B T D"], tuple[LayerCache, ...]]:
        """The residual stream after the last block at new tokens, and the cache with
        them.
        """
        length = tokens_BxT.shape[1]
        positions = starts_B[:, None] + jnp.arange(length)[None]
        x = self._embed(tokens_BxT, positions)
        if not isinstance(self.blocks, nnx.List):
            raise ConfigError(
                f"model.scan_layers = {self.config.scan_layers!r}: decoding needs the "
                "layers one by one; use unstack_layers"
            )
        layers: list[LayerCache] = []
        first = None
        for block, weights, layer in zip(
            self.blocks, self._list_residual_weights(), cache, strict=True
        ):
            x, layer, values = block.extend(x, weights, positions, layer, first)
            first = values if first is None else first
            layers.append(layer)
        return x, tuple(layers)

    def _embed(
        self,
        tokens_BxT: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The tokens' embeddings, with the encodings of their positions if there are
        any, in the precision of the computation.
        """
        config = self.config
        ops = self.rules.ops
        table = self.embedding[...]
        if config.tied and config.weight_bits is not None:
            # It is the matrix of the head as well, and is stored once.
            table = read_matrix(table.T, config.weight_bits).T
        x = split_rows(ops.embed(table, split_rows(tokens_BxT), self.in_multiplier))
        length = x.shape[1] if positions is None else config.context
        if self.position is not None:
            learned = take_positions(self.position[...][:length], positions)
            x = ops.add_positions(x, apply_multiplier(learned, self.in_multiplier))
        elif config.position == "sinusoidal":
            encodings = jnp.asarray(sinusoidal_encodings(length, config.width))
            x = ops.add_positions(x, take_positions(encodings, positions))
        return x.astype(config.dtype)

    def read_out(
        self, x: Float[Array, "B T D"], tap: Tap = pass_through
    ) -> Float[Array, "B T V"]:
        """The logits of a residual stream, float32."""
        ops = self.rules.ops
        x = tap("final_norm", self.norm(x))
        if self.head is not None:
            weight = self.head[...]
        else:
            weight = self.embedding[...][: self.config.vocab].T
        weight = read_matrix(weight, self.config.weight_bits)
        logits = split_rows(ops.readout(split_rows(x), weight, self.out_multiplier))
        logits = multiply_by_scale(logits, self.head_scale)
        logits = logits.astype(jnp.float32)
        cap = self.config.logit_cap
        if cap is not None:
            logits = cap * jnp.tanh(logits / cap)
        return ops.scale_logits(tap("logits", logits))

    def _apply_layers(
        self,
        x: Float[Array, "B T D"],
        key: Key,
        tap: Tap,
        unroll: bool,
        layout: Layout | None,
    ) -> tuple[Float[Array, "B T D"], Routing | None]:
        """The residual stream after the layers, and what their routers did."""
        config = self.config
        weights = self._list_residual_weights()
        keys = None if key is None else jax.random.split(key, config.depth)

        apply_block = self._choose_apply_block()
        if isinstance(self.blocks, Block):
            if tap is not pass_through:
                raise ConfigError(
                    f"model.scan_layers = {config.scan_layers!r}: a scan hides the "
                    "activations of its layers; use 'never' to tap them"
                )
            graph, state = nnx.split(self.blocks)
            stacked = jax.tree.map(lambda *w: jnp.asarray(w, jnp.float32), *weights)

            def apply_layer(
                x: Array, layer: tuple[PyTree, BlockWeights, Key]
            ) -> tuple[Array, Routing | None]:
                layer_state, layer_weights, layer_key = layer
                x, routing, _ = apply_block(
                    graph, layer_state, x, layer_weights, layer_key, layout
                )
                return x, routing

            layers = (state, stacked, keys)
            x, routing = jax.lax.scan(apply_layer, x, layers, unroll=unroll)
            return x, _add_losses(routing)

        routings: list[Routing | None] = []
        first = None
        for layer, block in enumerate(self.blocks):
            layer_key = None if keys is None else keys[layer]
            read = self._read_first_values(first, weights[0], weights[layer])
            if tap is pass_through:
                graph, state = nnx.split(block)
                x, routing, values = apply_block(
                    graph, state, x, weights[layer], layer_key, layout, read
                )
            else:
                name = f"block{layer}"
                tap_in_block = functools.partial(_tap_in_block, tap, name)
                x, routing, values = block(
                    x, weights[layer], layer_key, tap_in_block, layout, read
                )
                x = tap(name, x)
            first = values if first is None else first
            routings.append(routing)
        return x, _add_losses(jax.tree.map(lambda *r: jnp.stack(r), *routings))

    def _read_first_values(
        self, first: Values | None, source: BlockWeights, reader: BlockWeights
    ) -> Values | None:
        """The values of the first layer as a later one reads them."""
        if first is None:
            return None
        factor = self._weigh_attention(reader) / self._weigh_attention(source)
        return self.rules.ops.read_across_branches(first, factor)

    def _weigh_attention(self, weights: BlockWeights) -> Factor:
        """The weight of an attention branch on the stream, up to where it is weighted for
        its gradient.
        """
        attention, feed_forward = weights
        if attention.skip is None or feed_forward.skip is None:
            return 1.0
        if self.config.parallel_blocks:
            return attention.branch * feed_forward.skip
        return attention.branch

    def _list_residual_weights(self) -> list[BlockWeights]:
        weights: list[BlockWeights] = []
        for layer in range(self.config.depth):
            attention = self.rules.residual(2 * layer)
            feed_forward = self.rules.residual(2 * layer + 1)
            if not self.config.residual:
                attention = attention._replace(skip=None)
                feed_forward = feed_forward._replace(skip=None)
            weights.append((attention, feed_forward))
        return weights


def _require_model_config(config: ArchitectureConfig) -> ModelConfig:
    if not isinstance(config, ModelConfig):
        raise TypeError(f"{type(config).__name__}: must be a ModelConfig")
    return config


def _apply_block(
    graph: nnx.GraphDef[Block],
    state: PyTree,
    x: Float[Array, "B T D"],
    weights: BlockWeights,
    key: Key,
    layout: Layout | None,
    first: Values | None = None,
) -> tuple[Float[Array, "B T D"], Routing | None, Values | None]:
    return nnx.merge(graph, state)(x, weights, key, layout=layout, first=first)


def _add_losses(routing: Routing | None) -> Routing | None:
    """What the routers of all layers did, from what each did: the losses are added."""
    if routing is None:
        return None
    return routing._replace(losses=routing.losses.sum(axis=0))


def _stack_blocks(blocks: list[Block]) -> Block:
    """One block whose parameters have a leading layer axis."""
    graph, _ = nnx.split(blocks[0])
    states = [nnx.state(block) for block in blocks]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
