"""What a run is: frozen dataclasses, the only home of defaults.

A `RunConfig` is plain data. What decides its outcome is hashed to the run id
(`scaling.config.identity`), so the same configuration is the same run wherever it
executes. Every field is validated on construction.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Literal

from scaling.config.architecture import ArchitectureConfig
from scaling.config.conversion import (
    convert_fields,
    require,
    require_at_least_one,
    require_not_negative,
    require_positive,
)
from scaling.config.encodings import canonicalize_encoding
from scaling.config.identity import describe_identity, hash_identity
from scaling.config.mixture import format_mixture, is_mixture, parse_mixture
from scaling.config.model import ModelConfig

Optimizer = Literal["adamw", "sgd", "rmsprop", "muon"]
InvalidChoice = Literal["error", "skip", "replace"]
SparsityPattern = Literal["magnitude", "2:4", "heads"]
Schedule = Literal["wsd_linear", "wsd_1sqrt", "cosine", "inverse_sqrt"]
"""Those that begin with "wsd_" share a trunk and differ in their cooldown alone; the
factors are in `scaling.config.schedule`.
"""


@dataclass(frozen=True)
class DataConfig:
    """The source of the text, and how it becomes tokens.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    source: str = "code"
    """code, sotu, a path, hf:NAME, task:NAME, a synthetic source such as
    markov:states=64, or a mixture of texts such as mixture:code=0.7,sotu=0.3. A mixture
    may change its weights: mixture:code=0.9,sotu=0.1,@2e6,code=0.5,sotu=0.5 begins a
    second stage after 2,000,000 training tokens."""
    tokenizer: str = "bytes"
    """bytes, bpe:VOCAB, or the path of a tokenizer.json. Synthetic sources emit ids."""
    heldout_fraction: float = 0.02
    unique_tokens: int | None = None
    """Train on the first so many tokens only; None means all."""
    seed: int = 0
    """Of the order of the windows."""
    examples: int | None = None
    """Train on the first so many examples of a task only; None means all."""
    separate_documents: bool = False
    """Each token sees those of its own document alone, and positions begin anew with each
    document (Grattafiori et al. 2024, arXiv:2407.21783, section 3.2). Otherwise a window
    is one sequence, whatever documents it holds."""
    field: str = "text"
    """Where text in files is: the key of a .jsonl file, or the column of a .parquet, .csv
    or .tsv file. .txt files have none."""
    encoding: str = "utf-8"
    """Of text in files, by any name that Python knows, e.g. latin-1 or utf-16. A byte
    order mark may begin UTF-8. Strings in .parquet files are UTF-8 in any case."""
    invalid: InvalidChoice = "error"
    """What to do about text in files that is not in its encoding or is malformed. error:
    stop, and name all files that are not in their encoding. skip: leave out the document,
    line or row. replace: put U+FFFD in the place of bytes that cannot be decoded; what is
    malformed stays an error."""

    def __post_init__(self) -> None:
        convert_fields(self, "data")
        encoding = canonicalize_encoding(self.encoding, "data.encoding")
        object.__setattr__(self, "encoding", encoding)
        fix = "name the key or column that holds the text, e.g. 'text'"
        require(bool(self.field), "data.field", self.field, fix)
        fix = "name a source, e.g. 'code' or a path"
        require(bool(self.source), "data.source", self.source, fix)
        if is_mixture(self.source):
            canonical = format_mixture(parse_mixture(self.source))
            object.__setattr__(self, "source", canonical)
            fix = "cuts one source; leave it out for a mixture"
            ok = self.unique_tokens is None
            require(ok, "data.unique_tokens", self.unique_tokens, fix)
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
        ok = not (self.separate_documents and is_task)
        fix = "the examples of a task are kept apart in any case; leave it out"
        require(ok, "data.separate_documents", self.separate_documents, fix)


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

    model: ArchitectureConfig = field(default_factory=ModelConfig)
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
