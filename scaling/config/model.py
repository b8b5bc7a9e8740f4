"""The configuration of the decoder-only Transformer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from scaling.config.activations import ACTIVATIONS
from scaling.config.architecture import DECODER, ArchitectureConfig
from scaling.config.conversion import (
    ConfigError,
    JsonObject,
    require,
    require_at_least_one,
    require_positive,
)
from scaling.config.experts import ExpertConfig

Norm = Literal["rmsnorm", "nonparametric_rmsnorm", "layernorm", "none"]
Position = Literal["rope", "learned", "sinusoidal"]
if TYPE_CHECKING:
    Activation = str
else:
    # The choices of the table, as if they were written out here.
    Activation = Literal[tuple(ACTIVATIONS)]
LAYER_KINDS = ("f", "w", "n")
"""What `ModelConfig.layer_pattern` consists of."""


@dataclass(frozen=True)
class ModelConfig(ArchitectureConfig):
    """Shape and options of a decoder-only Transformer.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or contradicts
            another one.
    """

    architecture: str = DECODER
    n_heads: int | None = 4
    """None means width / head_dim, so that heads are added as the width grows."""
    head_dim: int | None = None
    """None means width / n_heads."""
    ff_ratio: float = 4.0
    """Hidden units of the feed-forward block per unit of width."""
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
    attention_sink: bool = False
    """Each head has a learned logit that joins the denominator of its softmax and has no
    value, so that a head can attend to nothing (gpt-oss, arXiv:2508.10925; compare Xiao
    et al. 2023, arXiv:2309.17453). It starts at 0."""
    parallel_blocks: bool = False
    """The attention and the feed-forward branch of a block read the same input, behind one
    norm, and both add to the stream (PaLM, arXiv:2204.02311, section 2)."""
    value_residual: bool = False
    """The values of each layer after the first are a times those of the first layer plus b
    times its own; a and b are learned by layer and start at 1/2 (Zhou et al. 2024,
    arXiv:2410.17897, the learnable variant)."""
    logit_cap: float | None = None
    """Logits are cap x tanh(logits / cap) (Gemma 2, arXiv:2408.00118, section 2); None:
    they are as they are."""
    rope_base: float = 10_000.0
    """Of position "rope": the base of its frequencies. Longer contexts take a larger one
    (Xiong et al. 2023, arXiv:2309.16039, section 2.1)."""
    n_kv_heads: int | None = None
    """Heads of keys and values, each of which n_heads / n_kv_heads heads of queries share
    (Ainslie et al. 2023, arXiv:2305.13245); None: as many as of queries."""
    experts: ExpertConfig = field(default_factory=ExpertConfig)
    """A mixture of experts in the place of each feed-forward block."""
    future_tokens: int = 0
    """In training each position predicts so many tokens beyond the next one, each by a
    layer of its own after the last (Gloeckle et al. 2024, arXiv:2404.19737, section 2). A
    trained model is opened without these layers."""
    future_weight: float = 0.3
    """Of the mean of their losses beside that of the next token (DeepSeek-AI 2024,
    arXiv:2412.19437, section 2.2)."""
    prefix: float = 0.0
    """Share of the context, at its start, whose tokens see each other; those after it
    see all before them and are predicted (prefix LM; Raffel et al. 2019,
    arXiv:1910.10683, section 3.2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "model", "n_heads", "head_dim", "n_kv_heads")
        require_positive(self, "model", "ff_ratio", "rope_base", "logit_cap")
        bits = self.weight_bits
        ok = bits is None or 2 <= bits <= 8
        require(ok, "model.weight_bits", bits, "must lie in 2 to 8, or be absent")
        self._check_heads()
        self._check_layers()
        self._check_experts()
        self._check_prefix()
        self._check_future()
        ok = self.residual or not self.parallel_blocks
        fix = "adds both branches to the residual stream; set model.residual = True"
        require(ok, "model.parallel_blocks", self.parallel_blocks, fix)
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
        ok = self.scan_layers != "always" or not self.value_residual
        fix = "a scan hides the values of its first layer; set model.scan_layers = 'never'"
        require(ok, "model.value_residual", self.value_residual, fix)

    def _check_experts(self) -> None:
        """Hold the experts against the options that do not go with them."""
        if self.n_experts == 0:
            return
        granularity = self.experts.granularity
        fix = f"must divide the hidden units of the dense block, {self.d_ff}"
        divides = self.d_ff % granularity == 0
        require(divides, "model.experts.granularity", granularity, fix)
        bits = self.weight_bits
        fix = "matrices of experts are not rounded; leave it out"
        require(bits is None, "model.weight_bits", bits, fix)

    def _check_prefix(self) -> None:
        """Hold the prefix against the context and the layers."""
        ok = 0 <= self.prefix < 1
        require(ok, "model.prefix", self.prefix, "must lie in [0, 1)")
        tokens = round(self.prefix * self.context)
        ok = self.prefix == 0 or 0 < tokens < self.context
        fix = f"must be between 1 and {self.context - 1} tokens of model.context"
        require(ok, "model.prefix", self.prefix, fix)
        ok = self.prefix_tokens == 0 or self.window is None
        fix = "a window would cut the tokens that are read as a whole; leave it out"
        require(ok, "model.window", self.window, fix)

    def _check_future(self) -> None:
        """Hold the prediction of further tokens against the options that it has no form
        for.
        """
        count = self.future_tokens
        ok = 0 <= count < self.context
        fix = f"must lie between 0 and {self.context - 1}"
        require(ok, "model.future_tokens", count, fix)
        require_positive(self, "model", "future_weight")
        if count == 0:
            return
        ok = self.n_experts == 0 and not self.value_residual
        fix = "goes with neither model.experts nor model.value_residual"
        require(ok, "model.future_tokens", count, fix)
        fix = "a model that hides tokens predicts no later ones; leave it out"
        require(self.masking is None, "model.future_tokens", count, fix)

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
    def base_key_dim(self) -> float | int:
        """Dimension of one head at the base width."""
        if self.head_dim is not None:
            return self.key_dim
        return self.base_width / self.heads

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
    def prefix_tokens(self) -> int:
        return round(self.prefix * self.context)

    @property
    def input_ids(self) -> int:
        """Rows of the embedding: one for each token, and for each mark beside them."""
        return self.vocab

    @property
    def n_experts(self) -> int:
        return self.experts.routed

    @property
    def expert_units(self) -> int:
        """Hidden units of one expert."""
        return self.d_ff // self.experts.granularity

    @property
    def active_units(self) -> int:
        """Hidden units that one token uses in a layer, of experts or of a dense block."""
        if self.n_experts == 0:
            return self.d_ff
        return (self.experts.per_token + self.experts.shared) * self.expert_units

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
            is_uniform = len(set(self.layer_kinds)) == 1 and not self.value_residual
            return self.depth > 8 and is_uniform
        return self.scan_layers == "always"

    @property
    def trained_layers(self) -> int:
        return self.depth + self.future_tokens

    def unscan(self) -> ModelConfig:
        return dataclasses.replace(self, scan_layers="never")

    def describe(self) -> JsonObject:
        return {
            "d_ff": self.d_ff,
            "n_heads": self.heads,
            "n_kv_heads": self.n_kv_heads,
            "weight_bits": self.weight_bits,
            **self._describe_experts(),
        }

    def _describe_experts(self) -> JsonObject:
        if self.n_experts == 0:
            return {}
        return {
            "n_experts": self.n_experts,
            "experts_per_token": self.experts.per_token,
            "shared_experts": self.experts.shared,
            "granularity": self.experts.granularity,
        }


def require_decoder(config: ArchitectureConfig, purpose: str) -> ModelConfig:
    """The configuration as that of a decoder.

    Args:
        config: Of any architecture.
        purpose: What needs a decoder, for the message.

    Raises:
        ConfigError: it is another architecture.
    """
    if isinstance(config, ModelConfig) and config.architecture == DECODER:
        return config
    raise ConfigError(
        f"model.architecture = {config.architecture!r}: {purpose} needs a {DECODER!r}"
    )
