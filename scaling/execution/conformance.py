"""Whether an architecture keeps what the library promises of every run.

`check_architecture` trains small models of it, and tests one law after the other:
nothing depends on later tokens, all strategies give one loss, an interrupted run ends as
an uninterrupted one, and so on. It is meant for architectures of one's own.

Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scaling.config import (
    ArchitectureConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    Trunk,
)
from scaling.data import load_dataset
from scaling.events import Event, Progress
from scaling.execution.in_process import train_in_process
from scaling.model.architecture import (
    Architecture,
    Cache,
    Params,
    find_architecture,
    trace_forward,
    trace_logits,
)
from scaling.model.family import Family, build_family
from scaling.model.flops import count_parameters, forward_flops_per_token
from scaling.store import run_dirs
from scaling.store.parameters import (
    PARAMETERS_FILE,
    flatten_parameters,
    read_parameters,
)
from scaling.store.table import run_table
from scaling.training.activation_changes import measure_activation_changes
from scaling.training.loop import LoopConfig
from scaling.training.rows import open_training_rows
from scaling.training.sharding import StrategyName, count_local_devices

Verdict = Literal["passed", "failed", "skipped"]

_STEPS = 16
_BATCH = 8
_STATES = 64
_COORDINATE_STEPS = 5
_COORDINATE_BATCH = 4
_LARGEST_GROWTH = 0.25
"""Slope, in the logarithm of the width, of the change of an activation. Under `sp` it is
about 1."""
_LARGEST_FALL = -0.75
"""The change of the logits holds a part that falls as width^-1/2."""


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        law: What was tested.
        verdict: "skipped" if it does not apply.
        finding: The numbers, or why it does not apply.
    """

    law: str
    verdict: Verdict
    finding: str


class LawBroken(Exception):
    """An architecture does not keep a law; the message is the finding."""


class NotApplicable(Exception):
    """A law does not apply; the message says why."""


@dataclass(frozen=True)
class Subject:
    """The model that is checked.

    Attributes:
        model: Its configuration.
        folder: For the runs that it trains.
    """

    model: ArchitectureConfig
    folder: Path

    @property
    def architecture(self) -> type[Architecture]:
        """Its module."""
        return find_architecture(self.model)

    @functools.cached_property
    def family(self) -> Family:
        """It as functions of its parameters."""
        return build_family(self.model)

    @functools.cached_property
    def params(self) -> Params:
        """Its parameters after some steps, at which no weight is zero by design."""
        out = self.train([self.make_run()], "trained", LoopConfig(strategy="single"))
        params, _ = read_parameters(self._find_parameters(out, self.make_run()))
        return jax.tree.map(jnp.asarray, params)

    @functools.cached_property
    def compute_logits(self) -> Callable[..., Array]:
        """Tokens, and perhaps `segments`, to logits, compiled."""

        def compute(
            params: Params, tokens: Array, segments: Array | None
        ) -> Float[Array, "B T V"]:
            return self.family.apply(params, tokens, segments=segments)

        compiled = jax.jit(compute)

        def call(tokens: Array, segments: Array | None = None) -> Array:
            return compiled(self.params, tokens, segments)

        return call

    def draw_tokens(self, rows: int, seed: int = 0) -> Int[Array, "B T"]:
        """Random sequences that fill the context."""
        shape = (rows, self.model.context)
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.integers(0, self.model.vocab, shape), jnp.int32)

    def make_run(self, seed: int = 0) -> RunConfig:
        """A short run."""
        batch_tokens = _BATCH * self.model.context
        return RunConfig(
            model=self.model,
            data=DataConfig(f"markov:states={min(_STATES, self.model.vocab)}"),
            optim=OptimConfig(
                lr=2e-3, batch_size=_BATCH, warmup_tokens=2 * batch_tokens
            ),
            tokens=_STEPS * batch_tokens,
            eval_tokens=batch_tokens,
            seed=seed,
        )

    def train(
        self,
        runs: list[RunConfig],
        name: str,
        loop: LoopConfig,
        report: Callable[[Event], None] = lambda event: None,
    ) -> Path:
        """Train runs in a folder of that name, in this process.

        Raises:
            LawBroken: a run failed.
        """
        out = self.folder / name
        out.mkdir(exist_ok=True)
        trunks = [Trunk((run,)) for run in runs]
        failures = train_in_process(trunks, out, loop, report)
        if failures:
            raise LawBroken(f"training failed: {failures[0].reason}")
        return out

    def read_loss(self, out: Path, run: RunConfig) -> float:
        """The loss of a run that is finished."""
        return float(run_table(out, [run])["loss"].iloc[0])

    def read_parameter_bytes(self, out: Path, run: RunConfig) -> dict[str, bytes]:
        """The bytes of all parameters of a run, by name."""
        params, _ = read_parameters(self._find_parameters(out, run))
        arrays = flatten_parameters(params)
        return {name: np.asarray(array).tobytes() for name, array in arrays.items()}

    def _find_parameters(self, out: Path, run: RunConfig) -> Path:
        return run_dirs.run_dir(out, run) / PARAMETERS_FILE


# --- the laws -------------------------------------------------------------------------


def check_parameters(subject: Subject) -> str:
    """The counted parameters are those of the module."""
    model = subject.model
    built = sum(leaf.size for leaf in jax.tree.leaves(subject.params))
    counts = count_parameters(model)
    if counts.n_total != built:
        raise LawBroken(f"count_parameters says {counts.n_total:,}; it has {built:,}")
    if not counts.n_matmul <= built + model.vocab * model.width:
        raise LawBroken(f"n_matmul = {counts.n_matmul:,} of {built:,} parameters")
    return (
        f"{built:,} parameters, {counts.n_matmul:,} multiply activations, "
        f"{counts.n_non_embedding:,} are neither embedding nor head"
    )


def check_logits(subject: Subject) -> str:
    """Logits are float32, one row for each token, and finite."""
    expected = (2, subject.model.context, subject.model.vocab)
    traced = trace_logits(subject.architecture, subject.model, rows=2)
    if not isinstance(traced, jax.ShapeDtypeStruct):
        raise LawBroken(f"it returns {type(traced).__name__}, not float32{expected}")
    if traced.shape != expected or traced.dtype != jnp.float32:
        raise LawBroken(f"{traced.dtype}{traced.shape}, not float32{expected}")
    logits = subject.compute_logits(subject.draw_tokens(2))
    if not bool(jnp.isfinite(logits).all()):
        raise LawBroken("some are not finite")
    return f"float32{expected}"


def check_causality(subject: Subject) -> str:
    """A token changes the logits from its own position on, and none before. Those of a
    prefix change each other.
    """
    context = subject.model.context
    prefix = subject.model.prefix_tokens
    tokens = subject.draw_tokens(1)[0]
    changed = jnp.tile(tokens, (context, 1))
    places = jnp.arange(context)
    other = (tokens + 1) % subject.model.vocab
    changed = changed.at[places, places].set(other)
    logits = subject.compute_logits(jnp.concatenate([tokens[None], changed]))
    change = np.asarray(jnp.abs(logits[1:] - logits[:1]).max(axis=-1))
    scale = float(jnp.std(logits[0]))
    before = np.tril(change, -1)  # row s: the change at t < s
    if prefix == context:
        if change[-1, 0] == 0.0:
            raise LawBroken("the first logits do not depend on the last token")
        return "all tokens see each other; those that it predicts are hidden"
    before[:prefix] = 0.0
    worst = before.max() / scale
    if worst > 1e-4:
        place, seen = np.unravel_index(before.argmax(), before.shape)
        raise LawBroken(
            f"the logits at position {seen} depend on the token at {place}: they change "
            f"by {worst:.2g} standard deviations"
        )
    own = np.diag(change)[prefix:] / scale
    if own.min() == 0.0:
        place = prefix + int(own.argmin())
        raise LawBroken(
            f"the logits at position {place} do not depend on its own token"
        )
    return f"largest change before a changed token: {worst:.1g} standard deviations"


def check_examples(subject: Subject) -> str:
    """A sequence gives the same logits whatever else is in its row."""
    if "segments" not in subject.architecture.honors:
        raise NotApplicable("it does not honor 'segments', and trains on no task")
    if subject.model.prefix_tokens > 0:
        raise NotApplicable("its prefix has one length, and it trains on no task")
    context = subject.model.context
    tokens = subject.draw_tokens(2)
    half = context // 2
    first = jnp.concatenate([tokens[0, :half], tokens[1, half:]])[None]
    rows = jnp.concatenate([tokens[:1], first])
    segments = jnp.tile(jnp.where(jnp.arange(context) < half, 0, 1), (2, 1))
    together = subject.compute_logits(rows, segments)
    alone = subject.compute_logits(tokens[:1, half:])
    scale = float(jnp.std(alone))
    apart = float(jnp.abs(together[0, half:] - alone[0]).max()) / scale
    shared = float(jnp.abs(together[0, :half] - together[1, :half]).max()) / scale
    if max(apart, shared) > 1e-3:
        raise LawBroken(f"they change by {max(apart, shared):.2g} standard deviations")
    return f"equal to {max(apart, shared):.1g} standard deviations"


def check_dropout(subject: Subject) -> str:
    """`model.dropout` changes training, and nothing without a key."""
    if "dropout" not in subject.architecture.honors:
        raise NotApplicable("it does not honor 'dropout'")
    family = build_family(dataclasses.replace(subject.model, dropout=0.5))
    tokens = subject.draw_tokens(2)
    plain = subject.compute_logits(tokens)
    apply = jax.jit(family.apply)
    without_key = apply(subject.params, tokens)
    dropped = apply(subject.params, tokens, jax.random.key(0))
    if not bool((plain == without_key).all()):
        raise LawBroken("logits without a key differ from those of dropout = 0")
    change = float(jnp.abs(plain - dropped).max() / jnp.std(plain))
    if change == 0.0:
        raise LawBroken("dropout = 0.5 with a key changes nothing")
    return f"logits change by up to {change:.2g} standard deviations at 0.5"


def check_flops(subject: Subject) -> str:
    """The counted FLOPs are those of the program."""
    model = subject.model
    counted = forward_flops_per_token(model, causal=False) * model.context
    traced = trace_forward(subject.architecture, model).flops
    if abs(counted / traced - 1) > 1e-6:
        raise LawBroken(
            f"count_forward_flops(causal=False) says {counted:,.0f} for a context; the "
            f"products of its program are {traced:,.0f}"
        )
    tokens = jax.ShapeDtypeStruct((1, model.context), jnp.int32)
    compute = jax.jit(subject.family.apply_for_training)
    program = compute.lower(subject.params, tokens)
    if "while" in program.as_text():
        return f"{counted:,.0f} for a context; XLA counts a loop once, so not by XLA"
    cost = program.cost_analysis()
    by_xla = float(cost["flops"]) / counted  # type: ignore[index]
    if by_xla < 1 - 1e-6:
        raise LawBroken(
            f"{counted:,.0f} for a context; XLA counts {by_xla:.3f} of them"
        )
    return f"{counted:,.0f} for a context; XLA, with elementwise work: {by_xla:.3f} x"


def check_strategies(subject: Subject) -> str:
    """All strategies give one loss, on all devices."""
    devices = count_local_devices()
    if devices == 1:
        raise NotApplicable("there is one device; start it with several")
    run = subject.make_run()
    losses = {}
    strategies: tuple[StrategyName, ...] = ("single", "pmap", "fsdp")
    for name in strategies:
        out = subject.train([run], f"strategy-{name}", LoopConfig(strategy=name))
        losses[name] = subject.read_loss(out, run)
    spread = max(losses.values()) - min(losses.values())
    if not spread < 1e-4:
        found = ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items())
        raise LawBroken(f"losses after {_STEPS} steps on {devices} devices: {found}")
    return f"single, pmap and fsdp on {devices} devices: within {spread:.1g} nats"


def check_packing(subject: Subject) -> str:
    """Runs that share a program have the losses that they have alone."""
    runs = [subject.make_run(seed) for seed in (0, 1)]
    losses = []
    for mode in ("solo", "vmap", "map"):
        loop = LoopConfig(strategy="single", pack=mode)
        out = subject.train(runs, f"pack-{mode}", loop)
        losses.append([subject.read_loss(out, run) for run in runs])
    spread = float(np.ptp(losses, axis=0).max())
    if not spread < 1e-4:
        raise LawBroken(f"losses solo, by vmap and by map differ by {spread:.2g} nats")
    return f"solo, vmap and map: within {spread:.1g} nats"


class _Interrupt(KeyboardInterrupt):
    """Ends a run in its middle."""


def check_resume(subject: Subject) -> str:
    """An interrupted run ends with the parameters of an uninterrupted one, bit for bit."""
    run = subject.make_run()
    loop = LoopConfig(
        strategy="single", pack="solo", chunk_steps=4, checkpoint_seconds=0.0
    )
    whole = subject.train([run], "whole", loop)
    chunks = 0

    def interrupt(event: Event) -> None:
        nonlocal chunks
        chunks += isinstance(event, Progress)
        if chunks == 2:
            raise _Interrupt

    with contextlib.suppress(_Interrupt):
        subject.train([run], "cut", loop, interrupt)
    cut = subject.train([run], "cut", loop)
    expected = subject.read_parameter_bytes(whole, run)
    found = subject.read_parameter_bytes(cut, run)
    other = [name for name in expected if expected[name] != found[name]]
    if other:
        raise LawBroken(f"{len(other)} arrays differ, among them {other[0]}")
    if subject.read_loss(whole, run) != subject.read_loss(cut, run):
        raise LawBroken("the losses differ")
    return f"{len(expected)} arrays and the loss are equal"


def check_decoding(subject: Subject) -> str:
    """Logits that are computed token by token are those of the whole sequence."""
    family = subject.family
    if family.config.prefix_tokens > 0:
        raise NotApplicable("it reads its prefix as a whole, and writes no texts")
    if family.config.scanned:
        raise NotApplicable("its layers are scanned; decoding lists them")
    tokens = subject.draw_tokens(2)
    context = subject.model.context
    whole = subject.compute_logits(tokens)
    prompt = max(1, context // 2)
    starts = jnp.zeros(2, jnp.int32)

    @jax.jit
    def extend(
        params: Params, tokens: Array, starts: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        x, cache = family.extend(params, tokens, starts, cache)
        return family.read_out(params, x), cache

    cache = family.make_cache(2, context)
    logits, cache = extend(subject.params, tokens[:, :prompt], starts, cache)
    parts = [logits]
    for place in range(prompt, context):
        new = tokens[:, place : place + 1]
        logits, cache = extend(subject.params, new, starts + place, cache)
        parts.append(logits)
    difference = jnp.abs(jnp.concatenate(parts, axis=1) - whole).max()
    apart = float(difference / jnp.std(whole))
    if apart > 1e-3:
        raise LawBroken(f"they differ by {apart:.2g} standard deviations")
    return f"equal to {apart:.1g} standard deviations"


def check_coordinates(subject: Subject) -> str:
    """Under muP the first steps change no activation more at larger widths."""
    model = dataclasses.replace(
        subject.model, parametrization="mup", base_width=subject.model.width
    )
    dataset = load_dataset(subject.make_run().data)
    batches = open_training_rows(model, dataset, _COORDINATE_BATCH, 0)
    windows = jnp.asarray(batches.batches(0, _COORDINATE_STEPS))
    probe = subject.draw_tokens(2, seed=1)
    widths = [model.width * factor for factor in (1, 2, 4)]
    changes = []
    for width in widths:
        wider = dataclasses.replace(model, width=width)
        optim = OptimConfig(lr=1e-3, batch_size=_COORDINATE_BATCH)
        by_step = measure_activation_changes(wider, optim, windows, probe, seeds=2)
        changes.append({name: values[-1] for name, values in by_step.items()})
    slopes = {}
    for name in changes[0]:
        values = [change[name] for change in changes]
        slopes[name] = float(np.polyfit(np.log(widths), np.log(values), 1)[0])
    if not slopes:
        raise NotApplicable("it calls no tap; call call.tap(name, x) on activations")
    highest = max(slopes, key=slopes.__getitem__)
    lowest = min(slopes, key=slopes.__getitem__)
    finding = (
        f"slopes of the change over widths {widths}: from {slopes[lowest]:+.2f} "
        f"({lowest}) to {slopes[highest]:+.2f} ({highest}); they may be {_LARGEST_FALL} "
        f"to {_LARGEST_GROWTH}"
    )
    if slopes[highest] > _LARGEST_GROWTH or slopes[lowest] < _LARGEST_FALL:
        raise LawBroken(finding)
    return finding


LOGITS = "logits have their shape"
"""The first law: without logits there is nothing else to check."""

LAWS: dict[str, Callable[[Subject], str]] = {
    LOGITS: check_logits,
    "parameters are counted": check_parameters,
    "no token is seen before its place": check_causality,
    "sequences of a row are kept apart": check_examples,
    "dropout acts in training alone": check_dropout,
    "FLOPs are counted": check_flops,
    "strategies agree": check_strategies,
    "packed equals solo": check_packing,
    "resumed equals uninterrupted": check_resume,
    "decoding equals recomputation": check_decoding,
    "learning rates transfer under muP": check_coordinates,
}
"""What is checked, in this order."""


def check_architecture(model: ArchitectureConfig) -> Iterator[CheckResult]:
    """Check an architecture law by law, on a small model. Without logits of the right
    shape, the first law, the others are not checked.

    On CPU it takes about two minutes. The strategies are checked over all devices of
    this process.

    Args:
        model: A small model; for the check of muP it is also built four times as wide.

    Raises:
        ConfigError: the model cannot be built.
    """
    build_family(model)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(model, Path(folder))
        for law, check in LAWS.items():
            result = _check_law(law, check, subject)
            yield result
            if law == LOGITS and result.verdict == "failed":
                return


def _check_law(
    law: str, check: Callable[[Subject], str], subject: Subject
) -> CheckResult:
    try:
        return CheckResult(law, "passed", check(subject))
    except NotApplicable as reason:
        return CheckResult(law, "skipped", str(reason))
    except LawBroken as reason:
        return CheckResult(law, "failed", str(reason))
    except Exception as error:  # the module may fail in any way
        return CheckResult(law, "failed", describe_error(error, subject.architecture))


def describe_error(error: Exception, architecture: type[Architecture]) -> str:
    """The first line of an error, and the line of the architecture's own file where it
    came up.
    """
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    file = inspect.getfile(architecture)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file]
    if not own:
        return text
    return f"{text} ({file}, line {own[-1].lineno})"
