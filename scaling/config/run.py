"""What a run is: frozen dataclasses, the only home of defaults.

A `RunConfig` is plain data. What decides its outcome is hashed to the run id
(`scaling.config.identity`), so the same configuration is the same run wherever it
executes. Every field is validated on construction.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from scaling.config.activations import ACTIVATIONS
from scaling.config.conversion import (
    convert_fields,
    require,
    require_at_least_one,
    require_not_negative,
    require_positive,
)
from scaling.config.identity import describe_identity, hash_identity

Norm = Literal["rmsnorm", "nonparametric_rmsnorm", "layernorm", "none"]
Position = Literal["rope", "learned", "sinusoidal"]
if TYPE_CHECKING:
    Activation = str
else:
    # The choices of the table, as if they were written out here.
    Activation = Literal[tuple(ACTIVATIONS)]
DType = Literal["float32", "bfloat16"]
LAYER_KINDS = ("f", "w", "n")
"""What `ModelConfig.layer_pattern` consists of."""
Optimizer = Literal["adamw", "sgd", "rmsprop", "muon"]
SparsityPattern = Literal["magnitude", "2:4", "heads"]
Schedule = Literal["wsd_linear", "wsd_1sqrt", "cosine", "inverse_sqrt"]
"""Those that begin with "wsd_" share a trunk and differ in their cooldown alone; the
factors are in `scaling.config.schedule`.
"""


@dataclass(frozen=True)
class UnitMultipliers:
    """Hyper-parameters of the unit-scaled parametrizations beside the learning rate
    (Blake et al. 2024, arXiv:2407.17465, table 5).
    """

    residual: float = 1.0
    """Of all branches against the embedding (alpha_res)."""
    attention_ratio: float = 1.0
    """Of attention branches against feed-forward branches (alpha_res_attn_ratio)."""
    activation: float = 1.0
    """Of the input of the activation (alpha_ffn_act)."""
    attention_softmax: float = 1.0
    """Of the attention scores (alpha_attn_softmax)."""
    loss_softmax: float = 1.0
    """Of the logits (alpha_loss_softmax)."""

    def __post_init__(self) -> None:
        convert_fields(self, "model.unit")
        names = [field.name for field in dataclasses.fields(self)]
        require_positive(self, "model.unit", *names)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and options of a decoder-only Transformer.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or contradicts
            another one.
    """

    width: int = 64
    depth: int = 4
    n_heads: int | None = 4
    """None means width / head_dim, so that heads are added as the width grows."""
    head_dim: int | None = None
    """None means width / n_heads."""
    ff_ratio: float = 4.0
    """Hidden units of the feed-forward block per unit of width."""
    vocab: int = 256
    context: int = 128
    """Tokens per sequence."""
    norm: Norm = "rmsnorm"
    """nonparametric_rmsnorm has no gains, as in u-muP."""
    position: Position = "rope"
    activation: Activation = "gelu"
    tied: bool = False
    """The output head shares the embedding's weights."""
    qk_norm: bool = True
    """Queries and keys are normalized."""
    residual: bool = True
    zero_init_outputs: bool = False
    """The last weights of each residual branch, and the head, start at zero."""
    dropout: float = 0.0
    parametrization: str = "sp"
    base_width: int = 64
    """The width at which every parametrization by ratios of sizes equals `sp`."""
    base_depth: int = 4
    """The depth at which every parametrization by ratios of sizes equals `sp`."""
    unit: UnitMultipliers = field(default_factory=UnitMultipliers)
    dtype: DType = "float32"
    """Of the computation; parameters are float32."""
    remat: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    scan_layers: Literal["auto", "always", "never"] = "auto"
    weight_bits: int | None = None
    """Quantization-aware training: matrices are rounded to so many bits, 2 to 8, where
    they multiply activations; None: they are not rounded."""
    layer_pattern: str = ""
    """Kinds of layers, repeated over the depth: "f" sees all tokens before, "w" those of
    the window, "n" all of them without rotary positions (NoPE; Kazemnejad et al. 2023,
    arXiv:2305.19466). Empty: "f" throughout."""
    window: int | None = None
    """Tokens that a layer of the kind "w" sees, itself included."""
    attention_gate: bool = False
    """The output of each head is multiplied by the sigmoid of a projection of its input
    (Qiu et al. 2025, arXiv:2505.06708, elementwise after the attention)."""
    logit_cap: float | None = None
    """Logits are cap x tanh(logits / cap) (Gemma 2, arXiv:2408.00118, section 2); None:
    they are as they are."""
    rope_base: float = 10_000.0
    """Of position "rope": the base of its frequencies. Longer contexts take a larger one
    (Xiong et al. 2023, arXiv:2309.16039, section 2.1)."""
    n_kv_heads: int | None = None
    """Heads of keys and values, each of which n_heads / n_kv_heads heads of queries share
    (Ainslie et al. 2023, arXiv:2305.13245); None: as many as of queries."""

    def __post_init__(self) -> None:
        convert_fields(self, "model")
        require_at_least_one(self, "model", "width", "depth", "n_heads", "head_dim")
        require_at_least_one(self, "model", "n_kv_heads")
        require_at_least_one(self, "model", "vocab", "context")
        require_at_least_one(self, "model", "base_width", "base_depth")
        require_positive(self, "model", "ff_ratio", "rope_base", "logit_cap")
        in_range = 0 <= self.dropout < 1
        require(in_range, "model.dropout", self.dropout, "must lie in [0, 1)")
        bits = self.weight_bits
        ok = bits is None or 2 <= bits <= 8
        require(ok, "model.weight_bits", bits, "must lie in 2 to 8, or be absent")
        self._check_heads()
        self._check_layers()
        if self.position == "rope":
            is_even = self.key_dim % 2 == 0
            require(is_even, "head dimension", self.key_dim, "must be even for 'rope'")
        ok = self.position == "rope" or self.rope_base == 10_000.0
        fix = "is of model.position = 'rope' alone"
        require(ok, "model.rope_base", self.rope_base, fix)

    def _check_heads(self) -> None:
        """Hold the width against whichever of n_heads and head_dim is set, and the heads
        of queries against those of keys.
        """
        self._check_width()
        fix = f"must divide the number of heads, {self.heads}"
        divides = self.heads % self.kv_heads == 0
        require(divides, "model.n_kv_heads", self.n_kv_heads, fix)

    def _check_layers(self) -> None:
        """Hold the pattern of layers against what its kinds need."""
        pattern = self.layer_pattern
        require_at_least_one(self, "model", "window")
        ok = set(pattern) <= set(LAYER_KINDS)
        fix = f"must consist of the letters {', '.join(LAYER_KINDS)}"
        require(ok, "model.layer_pattern", pattern, fix)
        ok = ("w" in pattern) == (self.window is not None)
        fix = "goes together with the letter 'w' in model.layer_pattern"
        require(ok, "model.window", self.window, fix)
        ok = "n" not in pattern or self.position == "rope"
        fix = "'n' leaves out rotary positions; set model.position = 'rope'"
        require(ok, "model.layer_pattern", pattern, fix)
        ok = self.scan_layers != "always" or len(set(self.layer_kinds)) == 1
        fix = "a scan takes layers of one kind; set model.scan_layers = 'never'"
        require(ok, "model.layer_pattern", pattern, fix)

    def _check_width(self) -> None:
        if self.n_heads is not None and self.head_dim is not None:
            return
        if self.n_heads is not None:
            fix = f"must be a multiple of model.n_heads = {self.n_heads}"
            divides = self.width % self.n_heads == 0
            fix = f"{fix}, or set model.head_dim"
            require(divides, "model.width", self.width, fix)
            return
        if self.head_dim is None:
            require(False, "model.n_heads", None, "set it, or model.head_dim")
            return
        fix = f"must be a multiple of model.head_dim = {self.head_dim}"
        divides = self.width % self.head_dim == 0
        require(divides, "model.width", self.width, f"{fix}, or set model.n_heads")

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        if self.n_heads is not None:
            return self.n_heads
        assert self.head_dim is not None  # checked on construction
        return self.width // self.head_dim

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and of values."""
        return self.heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of each layer."""
        pattern = self.layer_pattern or "f"
        return tuple(pattern[layer % len(pattern)] for layer in range(self.depth))

    @property
    def key_dim(self) -> int:
        """Dimension of one head."""
        if self.head_dim is not None:
            return self.head_dim
        return self.width // self.heads

    @property
    def qk_norm_kind(self) -> Norm:
        """The norm of queries and keys. It is RMSNorm, without gains where the norms of
        the blocks have none.
        """
        if not self.qk_norm:
            return "none"
        if self.norm == "nonparametric_rmsnorm":
            return "nonparametric_rmsnorm"
        return "rmsnorm"

    @property
    def d_ff(self) -> int:
        """Hidden units of the feed-forward block."""
        return max(1, round(self.ff_ratio * self.width))

    @property
    def gated(self) -> bool:
        """Whether the feed-forward block multiplies two projections."""
        return ACTIVATIONS[self.activation].is_gated

    @property
    def scanned(self) -> bool:
        """Whether the layers run as one scan, so that compile time does not grow with
        depth.

        A scan costs 20-40 % on CPU and saves little below depth 8. The rule looks at
        the shape alone, never at the device, because it decides the layout of the
        parameters and so of the checkpoints.
        """
        if self.scan_layers == "auto":
            return self.depth > 8 and len(set(self.layer_kinds)) == 1
        return self.scan_layers == "always"


@dataclass(frozen=True)
class DataConfig:
    """The source of the text, and how it becomes tokens.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    source: str = "code"
    """code, sotu, a path, hf:NAME, task:NAME, or a synthetic source such as
    markov:states=64."""
    tokenizer: str = "bytes"
    """bytes, bpe:VOCAB, or the path of a tokenizer.json. Synthetic sources emit ids."""
    heldout_fraction: float = 0.02
    unique_tokens: int | None = None
    """Train on the first so many tokens only; None means all."""
    seed: int = 0
    """Of the order of the windows."""
    examples: int | None = None
    """Train on the first so many examples of a task only; None means all."""

    def __post_init__(self) -> None:
        convert_fields(self, "data")
        fix = "name a source, e.g. 'code' or a path"
        require(bool(self.source), "data.source", self.source, fix)
        fraction = self.heldout_fraction
        in_range = 0 < fraction < 1
        require(in_range, "data.heldout_fraction", fraction, "must lie in (0, 1)")
        ok = self.unique_tokens is None or self.unique_tokens > 0
        fix = "must be positive, or absent for all"
        require(ok, "data.unique_tokens", self.unique_tokens, fix)
        require_not_negative(self, "data", "seed")
        require_at_least_one(self, "data", "examples")
        is_task = self.source.startswith("task:")
        ok = self.examples is None or is_task
        fix = "only a task has examples, data.source = 'task:NAME'; use unique_tokens"
        require(ok, "data.examples", self.examples, fix)
        ok = self.unique_tokens is None or not is_task
        fix = "a task is cut by data.examples"
        require(ok, "data.unique_tokens", self.unique_tokens, fix)


@dataclass(frozen=True)
class OptimConfig:
    """The recipe. Rates are peak rates.

    Weight decay is independent of the learning rate (Loshchilov & Hutter 2019,
    arXiv:1711.05101): w <- w - factor * weight_decay * w, where `factor` is that of the
    schedule, in [0, 1].

    Raises:
        ConfigError: a value has the wrong type, is out of range, or contradicts
            another one.
    """

    optimizer: Optimizer = "adamw"
    lr: float = 5e-3
    """At model.base_width; see docs/notes/recipe.md."""
    batch_size: int = 4
    """Sequences per step, over all devices."""
    accumulate: int = 1
    """Micro-batches that a step is split into."""
    schedule: Schedule = "wsd_linear"
    warmup_tokens: int = 65_536
    cooldown_fraction: float = 0.3
    """Of the run's tokens; used by the wsd schedules."""
    weight_decay: float = 0.0
    """Per step at the peak rate."""
    beta1: float = 0.9
    """Momentum of adamw, sgd and muon."""
    beta2: float = 0.99
    epsilon: float = 1e-8
    clip_norm: float | None = 1.0
    """None means that gradients are not clipped."""
    z_loss: float = 0.0
    """Train also on this number times the squared log of the softmax's denominator (PaLM,
    arXiv:2204.02311, section 5). Losses that are reported are without it."""
    lora_rank: int | None = None
    """Train adapters of this rank instead of the matrices (Hu et al. 2021,
    arXiv:2106.09685); None means that everything is trained."""
    lora_alpha: float = 16.0
    """The adapters are multiplied by lora_alpha / lora_rank."""

    def __post_init__(self) -> None:
        convert_fields(self, "optim")
        require_positive(self, "optim", "lr", "lora_alpha")
        require_at_least_one(self, "optim", "lora_rank")
        require_at_least_one(self, "optim", "batch_size", "accumulate")
        divides = self.batch_size % self.accumulate == 0
        fix = f"must be a multiple of optim.accumulate = {self.accumulate}"
        require(divides, "optim.batch_size", self.batch_size, fix)
        require_not_negative(self, "optim", "warmup_tokens", "weight_decay", "epsilon")
        require_not_negative(self, "optim", "z_loss")
        fraction = self.cooldown_fraction
        in_range = 0 <= fraction <= 1
        require(in_range, "optim.cooldown_fraction", fraction, "must lie in [0, 1]")
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            require(0 <= beta < 1, f"optim.{name}", beta, "must lie in [0, 1)")
        ok = self.clip_norm is None or self.clip_norm > 0
        fix = "must be positive, or absent for no clipping"
        require(ok, "optim.clip_norm", self.clip_norm, fix)


@dataclass(frozen=True)
class RelativeConfig:
    """A trained model that a run needs.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    run: str = ""
    """The id of the run that trained it."""
    step: int | None = None
    """The step of the checkpoint; None means the end of that run."""
    folder: str = field(default="", metadata={"label": True})
    """Where the run is: the folder of its sweep. It does not enter the run id."""

    # No annotation: it is not a field.
    field_path = "relative"

    def __post_init__(self) -> None:
        convert_fields(self, self.field_path)
        is_id = len(self.run) == 16 and set(self.run) <= set("0123456789abcdef")
        fix = "must be a run's id, 16 digits of 0-9a-f"
        require(is_id, f"{self.field_path}.run", self.run, fix)
        require_at_least_one(self, self.field_path, "step")


@dataclass(frozen=True)
class ParentConfig(RelativeConfig):
    """The trained model whose parameters a run starts from, pruned or as they are.

    Raises:
        ConfigError: a value has the wrong type or is out of range, or contradicts
            another one.
    """

    sparsity: float = 0.0
    """Remove this share before the first step. What is removed stays zero."""
    pattern: SparsityPattern = "magnitude"
    """What the sparsity is of. magnitude: the smallest weights of each matrix. 2:4: the
    two smallest of each four consecutive inputs of an output; the sparsity is 0.5 (Mishra
    et al. 2021, arXiv:2104.08378). heads: the attention heads of each layer whose output
    weights have the least norm."""

    field_path = "parent"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range = 0 <= self.sparsity < 1
        require(in_range, "parent.sparsity", self.sparsity, "must lie in [0, 1)")
        ok = self.pattern != "2:4" or self.sparsity == 0.5
        fix = "must be 0.5 for parent.pattern = '2:4'"
        require(ok, "parent.sparsity", self.sparsity, fix)
        ok = self.pattern != "heads" or self.sparsity > 0
        fix = "give the share of the heads for parent.pattern = 'heads'"
        require(ok, "parent.sparsity", self.sparsity, fix)


@dataclass(frozen=True)
class TeacherConfig(RelativeConfig):
    """The trained model whose distribution a run learns from (Hinton et al. 2015,
    arXiv:1503.02531).

    The loss of a token is (1 - weight) times the cross-entropy of the text plus weight
    times temperature^2 times that of the teacher's distribution, both distributions at
    the temperature.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    weight: float = 1.0
    """Of the teacher's distribution against the text, in (0, 1]."""
    temperature: float = 1.0
    """That the logits of both are divided by."""

    field_path = "teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range = 0 < self.weight <= 1
        require(in_range, "teacher.weight", self.weight, "must lie in (0, 1]")
        require_positive(self, "teacher", "temperature")


@dataclass(frozen=True)
class RunConfig:
    """One training run: a model, its data, a recipe and a token budget.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tokens: int = 1_000_000
    """Rounded down to whole steps when the run is planned or trained (`steps`)."""
    seed: int = 0
    """Of the initialization and of dropout."""
    eval_tokens: int = 131_072
    """Of the held-out slice, at most."""
    budget: float | None = field(default=None, metadata={"label": True})
    """The nominal IsoFLOP budget in FLOPs, a label that does not enter the run id."""
    parent: ParentConfig | None = None
    """The model to start from; None means fresh parameters."""
    teacher: TeacherConfig | None = None
    """The model to learn from beside the text; None means the text alone."""

    def __post_init__(self) -> None:
        convert_fields(self, "")
        in_range = 0 <= self.seed < 2**32
        require(in_range, "seed", self.seed, "must lie in [0, 2^32)")
        ok = self.eval_tokens >= 1
        require(ok, "eval_tokens", self.eval_tokens, "must be positive")
        fix = (
            f"must hold at least one step of {self.batch_tokens} tokens "
            "(optim.batch_size x model.context)"
        )
        require(self.tokens >= self.batch_tokens, "tokens", self.tokens, fix)
        ok = not self.keeps_zeros or self.optim.lora_rank is None
        fix = "adapters would fill what parent.sparsity removes; leave one of them out"
        require(ok, "optim.lora_rank", self.optim.lora_rank, fix)
        ok = self.teacher is None or self.optim.lora_rank is None
        fix = "a run with a teacher trains all of its parameters; leave one of them out"
        require(ok, "optim.lora_rank", self.optim.lora_rank, fix)

    @property
    def keeps_zeros(self) -> bool:
        """Whether the weights that are zero at the start are never trained."""
        return self.parent is not None and self.parent.sparsity > 0

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.optim.batch_size * self.model.context

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
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
        """What an executable is compiled for, shared by all runs that differ only in
        rates, lengths, seeds and data.
        """
        optim = dataclasses.replace(
            self.optim,
            schedule="wsd_linear",
            lr=1.0,
            weight_decay=0.0,
            warmup_tokens=0,
            cooldown_fraction=0.0,
        )
        return RunConfig(self.model, DataConfig(), optim, tokens=self.batch_tokens)

    @functools.cached_property  # a sweep of many runs asks for it many times
    def run_id(self) -> str:
        """The hash of everything that decides the outcome."""
        return hash_identity(describe_identity(self))

    @functools.cached_property  # a sweep of many runs asks for it many times
    def trunk_id(self) -> str:
        """The hash shared by all runs that differ only in their token budget and
        cooldown; a cosine run shares its trunk with no other.
        """
        if self.optim.schedule == "cosine":
            return self.run_id
        identity = describe_identity(self)
        del identity["tokens"]
        del identity["optim"]["cooldown_fraction"]
        identity["optim"]["schedule"] = identity["optim"]["schedule"].split("_")[0]
        return hash_identity(identity)
