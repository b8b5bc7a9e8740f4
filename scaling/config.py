"""What a run is: frozen dataclasses, the only home of defaults.

A `RunConfig` is plain data. Its canonical JSON is hashed to the run id, so the same
configuration is the same run wherever it executes. Every field is validated on
construction; an unknown key names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import numbers
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

Norm = Literal["rmsnorm", "nonparametric_rmsnorm", "layernorm", "none"]
Position = Literal["rope", "learned", "sinusoidal"]
Activation = Literal[
    "gelu",
    "relu",
    "relu6",
    "sigmoid",
    "silu",
    "relu2",
    "geglu",
    "reglu",
    "swiglu",
    "glu",
]
DType = Literal["float32", "bfloat16"]
Optimizer = Literal["adamw", "sgd", "rmsprop", "muon"]
Schedule = Literal["wsd_linear", "wsd_1sqrt", "cosine", "inverse_sqrt"]

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field, the value and
    the remedy.
    """


def _require(ok: bool, name: str, value: object, remedy: str) -> None:
    if not ok:
        raise ConfigError(f"{name} = {value!r}: {remedy}")


@dataclass(frozen=True)
class UnitMultipliers:
    """Hyper-parameters of the unit-scaled parametrizations beside the learning rate
    (Blake et al. 2024).
    """

    residual: float = 1.0  # of all branches against the embedding: alpha_res
    attention_ratio: float = (
        1.0  # of attention against feed-forward branches: alpha_res_attn_ratio
    )
    activation: float = 1.0  # alpha_ffn_act
    attention_softmax: float = 1.0  # alpha_attn_softmax
    loss_softmax: float = 1.0  # alpha_loss_softmax

    def __post_init__(self) -> None:
        _check_types(self, "model.unit")
        for name, value in dataclasses.asdict(self).items():
            _require(value > 0, f"model.unit.{name}", value, "must be positive")


@dataclass(frozen=True)
class ModelConfig:
    """Shape and options of a decoder-only Transformer."""

    width: int = 64
    depth: int = 4
    n_heads: int | None = (
        4  # None: width / head_dim, so that heads are added as width grows
    )
    head_dim: int | None = None  # None: width / n_heads
    ff_ratio: float = 4.0  # hidden units of the feed-forward block per unit of width
    vocab: int = 256
    context: int = 128
    norm: Norm = "rmsnorm"  # nonparametric: without gains, as u-muP has it
    position: Position = "rope"
    activation: Activation = "gelu"
    tied: bool = False  # output head shares the embedding's weights
    qk_norm: bool = True
    residual: bool = True
    zero_init_outputs: bool = False  # residual branches and the head start at zero
    dropout: float = 0.0
    parametrization: str = "sp"
    base_width: int = (
        64  # where every parametrization by ratios of sizes agrees with `sp`
    )
    base_depth: int = 4
    unit: UnitMultipliers = field(default_factory=UnitMultipliers)
    dtype: DType = "float32"  # of the computation; parameters are float32
    remat: bool = False
    scan_layers: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        _check_types(self, "model")
        for name in (
            "width",
            "depth",
            "n_heads",
            "head_dim",
            "vocab",
            "context",
            "base_width",
            "base_depth",
        ):
            value = getattr(self, name)
            _require(
                value is None or value >= 1,
                f"model.{name}",
                value,
                "must be at least 1",
            )
        _require(self.ff_ratio > 0, "model.ff_ratio", self.ff_ratio, "must be positive")
        _require(
            0 <= self.dropout < 1, "model.dropout", self.dropout, "must lie in [0, 1)"
        )
        if self.n_heads is None:
            _require(
                self.head_dim is not None,
                "model.n_heads",
                None,
                "set it, or model.head_dim",
            )
            remedy = f"must be a multiple of model.head_dim = {self.head_dim}, or set model.n_heads"
            _require(
                self.width % (self.head_dim or 1) == 0,
                "model.width",
                self.width,
                remedy,
            )
        elif self.head_dim is None:
            remedy = f"must be a multiple of model.n_heads = {self.n_heads}, or set model.head_dim"
            _require(self.width % self.n_heads == 0, "model.width", self.width, remedy)
        if self.position == "rope":
            _require(
                self.key_dim % 2 == 0,
                "head dimension",
                self.key_dim,
                "must be even for 'rope'",
            )

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return (
            self.n_heads
            if self.n_heads is not None
            else self.width // (self.head_dim or 1)
        )

    @property
    def key_dim(self) -> int:
        """Dimension of one head."""
        return self.head_dim if self.head_dim is not None else self.width // self.heads

    @property
    def qk_norm_kind(self) -> Norm:
        """Norm of queries and keys: RMSNorm, without gains where the blocks' norms have
        none.
        """
        if not self.qk_norm:
            return "none"
        return (
            "nonparametric_rmsnorm"
            if self.norm == "nonparametric_rmsnorm"
            else "rmsnorm"
        )

    @property
    def d_ff(self) -> int:
        """Hidden units of the feed-forward block."""
        return max(1, round(self.ff_ratio * self.width))

    @property
    def gated(self) -> bool:
        """Whether the feed-forward block multiplies two projections."""
        return self.activation in ("geglu", "reglu", "swiglu", "glu")

    @property
    def scanned(self) -> bool:
        """Whether the layers run as one scan: compile time then does not grow with
        depth.

        A scan costs 20-40 % on CPU and saves little below depth 8. The rule looks at
        the shape alone, never at the device, because it decides the layout of the
        parameters and so of the checkpoints.
        """
        return self.scan_layers == "always" or (
            self.scan_layers == "auto" and self.depth > 8
        )


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    source: str = (
        "code"  # code | sotu | PATH | hf:NAME | synthetic: markov[:k=v,...], pdfa, ...
    )
    tokenizer: str = "bytes"  # bytes | bpe:VOCAB | path to a tokenizer.json; synthetic sources emit ids
    heldout_fraction: float = 0.02
    unique_tokens: int | None = None  # train on the first so many tokens only
    seed: int = 0  # order of the windows

    def __post_init__(self) -> None:
        _check_types(self, "data")
        _require(
            bool(self.source),
            "data.source",
            self.source,
            "name a source, e.g. 'code' or a path",
        )
        ok = 0 < self.heldout_fraction < 1
        _require(
            ok, "data.heldout_fraction", self.heldout_fraction, "must lie in (0, 1)"
        )
        ok = self.unique_tokens is None or self.unique_tokens > 0
        _require(
            ok,
            "data.unique_tokens",
            self.unique_tokens,
            "must be positive, or absent for all",
        )
        _require(self.seed >= 0, "data.seed", self.seed, "must not be negative")


@dataclass(frozen=True)
class OptimConfig:
    """The recipe. Rates are peak rates; weight decay is independent of the rate
    (Loshchilov & Hutter 2019).
    """

    optimizer: Optimizer = "adamw"
    lr: float = 5e-3  # at model.base_width, see docs/recipe.md
    batch_size: int = 4  # sequences per step, over all devices
    accumulate: int = 1  # micro-batches a step is split into
    schedule: Schedule = "wsd_linear"
    warmup_tokens: int = 65_536
    cooldown_fraction: float = 0.3  # of the run's tokens, for the wsd schedules
    weight_decay: float = (
        0.0  # per step at the peak rate: w <- w - factor * weight_decay * w
    )
    beta1: float = 0.9  # momentum of adamw, sgd and muon
    beta2: float = 0.99
    epsilon: float = 1e-8
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        _check_types(self, "optim")
        _require(self.lr > 0, "optim.lr", self.lr, "must be positive")
        for name in ("batch_size", "accumulate"):
            _require(
                getattr(self, name) >= 1,
                f"optim.{name}",
                getattr(self, name),
                "must be at least 1",
            )
        remedy = f"must be a multiple of optim.accumulate = {self.accumulate}"
        _require(
            self.batch_size % self.accumulate == 0,
            "optim.batch_size",
            self.batch_size,
            remedy,
        )
        _require(
            self.warmup_tokens >= 0,
            "optim.warmup_tokens",
            self.warmup_tokens,
            "must not be negative",
        )
        ok = 0 <= self.cooldown_fraction <= 1
        _require(
            ok, "optim.cooldown_fraction", self.cooldown_fraction, "must lie in [0, 1]"
        )
        _require(
            self.weight_decay >= 0,
            "optim.weight_decay",
            self.weight_decay,
            "must not be negative",
        )
        for name in ("beta1", "beta2"):
            _require(
                0 <= getattr(self, name) < 1,
                f"optim.{name}",
                getattr(self, name),
                "must lie in [0, 1)",
            )
        _require(
            self.epsilon >= 0, "optim.epsilon", self.epsilon, "must not be negative"
        )
        ok = self.clip_norm is None or self.clip_norm > 0
        _require(
            ok,
            "optim.clip_norm",
            self.clip_norm,
            "must be positive, or absent for no clipping",
        )


@dataclass(frozen=True)
class RunConfig:
    """One training run: a model, its data, a recipe and a token budget.

    `tokens` is rounded to whole steps when the run is planned or trained (`steps`).
    `budget` is a label, the nominal IsoFLOP budget in FLOPs; labels do not enter the
    run id.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tokens: int = 1_000_000
    seed: int = 0  # initialisation and dropout
    eval_tokens: int = 131_072  # of the held-out slice, at most
    budget: float | None = field(default=None, metadata={"label": True})

    def __post_init__(self) -> None:
        _check_types(self, "")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "must lie in [0, 2^32)")
        _require(
            self.eval_tokens >= 1, "eval_tokens", self.eval_tokens, "must be positive"
        )
        remedy = f"must hold at least one step of {self.batch_tokens} tokens (optim.batch_size x model.context)"
        _require(self.tokens >= self.batch_tokens, "tokens", self.tokens, remedy)

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimiser step."""
        return self.optim.batch_size * self.model.context

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.tokens // self.batch_tokens

    @property
    def branch_step(self) -> int:
        """The step at which this run leaves the trunk that it shares with longer and
        shorter runs.

        Up to this step nothing depends on `tokens`. A cosine run shares nothing: its
        branch step is 0.
        """
        if self.optim.schedule == "cosine":
            return 0
        if self.optim.schedule == "inverse_sqrt":
            return self.steps
        return self.steps - round(self.optim.cooldown_fraction * self.steps)

    @property
    def shape(self) -> RunConfig:
        """What a program is compiled for: shared by all runs that differ only in rates,
        lengths, seeds and data.
        """
        rates: Any = {
            "lr": 1.0,
            "weight_decay": 0.0,
            "warmup_tokens": 0,
            "cooldown_fraction": 0.0,
        }
        optim = dataclasses.replace(self.optim, schedule="wsd_linear", **rates)
        return RunConfig(self.model, DataConfig(), optim, tokens=self.batch_tokens)

    @functools.cached_property  # a sweep of many runs asks for it many times
    def run_id(self) -> str:
        """Hash of everything that decides the outcome."""
        return _digest(_identity(self))

    @functools.cached_property  # a sweep of many runs asks for it many times
    def trunk_id(self) -> str:
        """Hash shared by all runs that differ only in their token budget and cooldown;
        a cosine run is alone.
        """
        if self.optim.schedule == "cosine":
            return self.run_id
        identity = _identity(self)
        del identity["tokens"], identity["optim"]["cooldown_fraction"]
        identity["optim"]["schedule"] = identity["optim"]["schedule"].split("_")[0]
        return _digest(identity)


def _identity(config: RunConfig) -> dict[str, Any]:
    labels = {f.name for f in dataclasses.fields(config) if f.metadata.get("label")}
    return {key: value for key, value in to_dict(config).items() if key not in labels}


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal data give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_dict(config: object) -> dict[str, Any]:
    """Nested plain data of a configuration."""
    return dataclasses.asdict(config)  # type: ignore[arg-type]


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """Build a configuration from nested plain data, e.g. parsed JSON or TOML.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a wrong type, or
        an invalid value.
    """
    _require(isinstance(values, dict), where or cls.__name__, values, "must be a table")
    hints = _hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"known keys: {', '.join(sorted(known))}"
            )
            raise ConfigError(f"{path}: unknown key of {cls.__name__}; {hint}")
        built[key] = _convert(hints[key], value, path)
    return cls(**built)


_hints = functools.cache(typing.get_type_hints)


def _check_types(config: Any, where: str) -> None:
    """Hold every value against its field's type and convert it, so that equal
    configurations have equal JSON.
    """
    for name, hint in _hints(type(config)).items():
        path = f"{where}.{name}" if where else name
        object.__setattr__(config, name, _convert(hint, getattr(config, name), path))


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Check a value against a type hint, converting numbers (4 and 4.0 are one value)
    and nested tables.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        _require(
            value in args, path, value, f"choose one of {', '.join(map(repr, args))}"
        )
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path)
    if origin is tuple:
        _require(isinstance(value, list | tuple), path, value, "must be a list")
        return tuple(
            _convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value)
        )
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        _require(isinstance(value, dict), path, value, "must be a table")
        return from_dict(typing.cast(type, hint), value, path)
    if (
        hint in (int, float)
        and isinstance(value, numbers.Real)
        and not isinstance(value, bool)
    ):
        try:
            number = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            number = math.inf
        _require(math.isfinite(number), path, value, "must be finite")
        _require(
            hint is float or number.is_integer(), path, value, "must be a whole number"
        )
        return number if hint is float else int(typing.cast(int, value))
    ok = isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
    _require(ok, path, value, f"must be {hint.__name__}")
    return value


def read_toml(path: str | Path, cls: type[T]) -> T:
    """Read a preset.

    Raises:
        ConfigError: the file is absent, is not TOML, or names an unknown key.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"preset {str(path)!r}: no such file") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number of thousands of digits is not a TOMLDecodeError
        raise ConfigError(f"preset {str(path)!r}: not valid TOML: {error}") from None
    return from_dict(cls, values)
