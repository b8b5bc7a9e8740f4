"""Bytes that training takes, counted from the shape of a model: of a GPU that need not
be here, and of a job's host.

XLA's compiler for GPUs needs one. The same program compiled for CPU asks for 2.7 to 4.8
times as much: attention there is not cuDNN's, and little is fused or computed anew.
What XLA keeps on a GPU follows a simple rule: for each layer the operands and results
of its products and the residual stream, all elementwise functions being computed anew;
one set of gradients beside the state; the logits once, in float32.
`tests/scaling/test_memory.py` holds the count against what an H100's compiler asked
for.

Symbols: D width, I width of all heads, F hidden units, V vocabulary, T context.
"""

from __future__ import annotations

import math

import jax

from scaling.config import ModelConfig, RunConfig
from scaling.model.flops import count_parameters
from scaling.model.kernels import count_computed_positions, has_cudnn_attention
from scaling.model.transformer import build_family
from scaling.planning.aot import Footprint
from scaling.training.loop import LoopConfig
from scaling.training.optimizer import make_optimizer
from scaling.training.step import CACHED_TOKENS, StepSpec, TrainState

_FLOAT = 4  # bytes of a parameter, a gradient and a logit


def gpu_footprint(run: RunConfig, devices: int, sharded: bool = False) -> Footprint:
    """What the training chunk of a run takes of each of `devices` GPUs that share its
    batch.

    `sharded` splits parameters and the optimiser's state too. Measured for one GPU in
    bfloat16; the rest is counted by the same rule.
    """
    model, state = run.model, _state(run)
    state_bytes = _bytes(state) // (devices if sharded else 1)
    windows = (
        LoopConfig().chunk_steps
        * run.optim.batch_size
        // devices
        * (model.context + 1)
        * 4
    )
    tokens = run.optim.batch_size // run.optim.accumulate // devices * model.context
    gradients = _bytes(state.params) // (devices if sharded else 1)
    copies = (2 if run.optim.accumulate > 1 else 1) + (
        devices > 1
    )  # a sum of their own, and what is summed over GPUs
    layer = layer_bytes(model)
    kept = (
        model.depth * model.width * _item(model) + layer
        if model.remat
        else model.depth * layer
    )
    temporaries = copies * gradients + tokens * (kept + model.vocab * _FLOAT)
    if sharded:  # of two layers and of the embedding or the head, gathered
        temporaries += _FLOAT * (
            2 * count_parameters(model).n_non_embedding // model.depth
            + model.vocab * model.width
        )
    return Footprint(state_bytes + windows, state_bytes, state_bytes, temporaries)


def host_bytes(run: RunConfig) -> int:
    """What training a run takes of the machine's memory beside Python and JAX, an upper
    bound.

    The state and its copy in a checkpoint, two sets of gradients, and the activations
    of as many tokens as are seen at once on CPU, at least a sequence.
    """
    model, state = run.model, _state(run)
    tokens = max(CACHED_TOKENS, model.context)
    activations = tokens * (model.depth * layer_bytes(model) + 2 * model.vocab * _FLOAT)
    return 2 * _bytes(state) + 2 * _bytes(state.params) + activations


def layer_bytes(model: ModelConfig) -> int:
    """Bytes of a token that a layer keeps for its gradient."""
    D, inner, hidden = model.width, model.heads * model.key_dim, model.d_ff
    turned = 2 * inner if model.qk_norm or model.position == "rope" else 0
    attention = (
        3 * inner + turned + inner + D
    )  # projections; queries and keys as multiplied; what is read; the branch
    feed_forward = (3 if model.gated else 2) * hidden + D
    norms = 0 if model.norm == "none" else 2 * D
    values = attention + feed_forward + norms + 2 * D  # the stream after each branch
    if not has_cudnn_attention(model.dtype, model.key_dim):
        values += round(model.heads * count_computed_positions(model.context))
    return values * _item(model)


def _state(run: RunConfig) -> TrainState:
    """Its shapes."""
    family = build_family(run.model)
    return jax.eval_shape(
        lambda: StepSpec(family, make_optimizer(run.optim, family), 1, None).init(0)
    )


def _item(model: ModelConfig) -> int:
    return 2 if model.dtype == "bfloat16" else 4


def _bytes(tree: object) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
