"""Bytes that training takes, counted from the shape of a model: on a GPU that need not
be present, and on the host of a job.

XLA's compiler for GPUs needs a GPU. The same program compiled for CPU asks for 2.7 to
4.8 times as much, because its attention is not cuDNN's and XLA fuses and recomputes
little there. What XLA keeps on a GPU follows a simple rule: for each layer the operands
and results of its products and the residual stream, since all elementwise functions are
recomputed; one set of gradients beside the state; the logits once, in float32.
`tests/scaling/planning/test_memory.py` compares the count with what the compiler asked
for on an H100.
"""

from __future__ import annotations

import math

import jax

from scaling.config import ArchitectureConfig, RunConfig
from scaling.model.architecture import find_architecture
from scaling.model.flops import count_parameters
from scaling.planning.aot import Footprint
from scaling.training.loop import LoopConfig
from scaling.training.step import TrainState, count_cached_tokens, make_step_spec

_FLOAT = 4  # bytes of a parameter, a gradient and a logit
_TOKEN = 4  # bytes of a token id


def estimate_gpu_footprint(
    run: RunConfig, devices: int, sharded: bool = False
) -> Footprint:
    """What the training chunk of a run takes of each GPU.

    The rule was measured for one GPU in bfloat16, and is assumed for other numbers of
    devices and for float32.

    Args:
        devices: number of GPUs that share the batch.
        sharded: whether they split parameters and optimizer state too.
    """
    model, optim = run.model, run.optim
    state = _make_abstract_state(run)
    state_shards = devices if sharded else 1
    state_bytes = _count_bytes(state) // state_shards

    sequences = LoopConfig().chunk_steps * optim.batch_size // devices
    windows = sequences * (model.context + 1) * _TOKEN

    # Accumulation keeps a sum of gradients beside those of a micro-batch, and several
    # devices keep the gradients that are being summed over them.
    copies = 1
    if optim.accumulate > 1:
        copies += 1
    if devices > 1:
        copies += 1
    gradients = copies * (_count_bytes(state.params) // state_shards)

    tokens = optim.batch_size // optim.accumulate // devices * model.context
    layer = count_layer_bytes(model)
    kept = model.trained_layers * layer
    if model.remat:  # the input of every layer, and one layer at a time in full
        inputs = model.trained_layers * model.width * _bytes_per_value(model)
        kept = inputs + layer
    readouts = 1 + model.trained_layers - model.depth
    temporaries = gradients + tokens * (kept + readouts * model.vocab * _FLOAT)
    if sharded:  # two layers, and the embedding or the head, are gathered at a time
        gathered = 2 * count_parameters(model).n_non_embedding // model.depth
        temporaries += _FLOAT * (gathered + model.vocab * model.width)
    return Footprint(
        arguments=state_bytes + windows,
        outputs=state_bytes,
        aliased=state_bytes,
        temporaries=temporaries,
    )


def estimate_host_bytes(run: RunConfig) -> int:
    """An upper bound on the memory that training a run takes of the host, beside what
    Python and JAX take.

    It counts the state and its copy in a checkpoint, two sets of gradients, and the
    activations of as many tokens as the CPU processes at once, at least one sequence.
    """
    model = run.model
    state = _make_abstract_state(run)
    tokens = max(count_cached_tokens(model), model.context)
    layers = model.trained_layers * count_layer_bytes(model)
    readouts = 1 + model.trained_layers - model.depth
    activations = tokens * (layers + 2 * readouts * model.vocab * _FLOAT)
    return 2 * _count_bytes(state) + 2 * _count_bytes(state.params) + activations


def count_layer_bytes(model: ArchitectureConfig) -> int:
    """Bytes per token that a layer keeps for its gradient."""
    return find_architecture(model).count_layer_bytes(model)


def _make_abstract_state(run: RunConfig) -> TrainState:
    """The training state as shapes and dtypes, without values."""
    spec = make_step_spec(run)
    return jax.eval_shape(lambda: spec.init(0))


def _bytes_per_value(model: ArchitectureConfig) -> int:
    return 2 if model.dtype == "bfloat16" else 4


def _count_bytes(tree: object) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
