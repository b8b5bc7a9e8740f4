"""What the configuration of every architecture holds, and where each one is.

A run's `model` is the configuration of an architecture. Planner, trainer,
parametrization and run table read the fields of `ArchitectureConfig`; the other fields
are the architecture's own. An architecture has a name: one of `ARCHITECTURES`, or
"package.module:Class" for a class of somebody else's, whose attribute `Config` is its
configuration.
"""

from __future__ import annotations

import dataclasses
import importlib
import traceback
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from scaling.config.conversion import (
    ConfigError,
    JsonObject,
    convert_fields,
    join_path,
    require,
    require_at_least_one,
    require_positive,
)
from scaling.config.suggestions import did_you_mean

DType = Literal["float32", "bfloat16"]


class Masking(NamedTuple):
    """How the tokens of a window are hidden from a model that predicts them.

    Attributes:
        rate: Share of the tokens that are predicted.
        hidden: Share of these that are replaced by a mark.
        replaced: Share of these that are replaced by a random token. The rest are left
            as they are.
    """

    rate: float
    hidden: float
    replaced: float


DECODER = "decoder"
"""The architecture of a configuration that names none."""


class ArchitectureEntry(NamedTuple):
    """Where an architecture is: "module:Class" of its configuration and of its module.

    They are imported when they are used.
    """

    config: str
    module: str


ARCHITECTURES: dict[str, ArchitectureEntry] = {
    DECODER: ArchitectureEntry(
        config="scaling.config.model:ModelConfig",
        module="scaling.model.architectures.transformer:Transformer",
    ),
    "encoder": ArchitectureEntry(
        config="scaling.config.encoder:EncoderConfig",
        module="scaling.model.architectures.encoder:Encoder",
    ),
    "encoder_decoder": ArchitectureEntry(
        config="scaling.model.architectures.encoder_decoder:EncoderDecoderConfig",
        module="scaling.model.architectures.encoder_decoder:EncoderDecoder",
    ),
    "linear_attention": ArchitectureEntry(
        config="scaling.model.architectures.linear_attention:LinearAttentionConfig",
        module="scaling.model.architectures.linear_attention:LinearTransformer",
    ),
    "lstm": ArchitectureEntry(
        config="scaling.model.architectures.lstm:LstmConfig",
        module="scaling.model.architectures.lstm:Lstm",
    ),
    "convolution": ArchitectureEntry(
        config="scaling.model.architectures.convolution:ConvolutionConfig",
        module="scaling.model.architectures.convolution:ConvolutionalNetwork",
    ),
}
"""The architectures of this library, by name."""


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
class ArchitectureConfig:
    """Shape and options that every architecture has. An architecture's own configuration
    is a frozen dataclass that extends this one, and sets `architecture` to its name.

    All fields of an architecture enter the run id. To add one later without changing the
    ids of stored runs, give it a default that means "as before" and say so:
    `field(default=x, metadata={"introduced_as": x})`.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or contradicts
            another one.
    """

    architecture: str = ""
    """Its name, which says what the other fields mean."""
    width: int = 64
    """Of the activations between the layers."""
    depth: int = 4
    """Number of layers."""
    vocab: int = 256
    context: int = 128
    """Tokens per sequence."""
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

    def __post_init__(self) -> None:
        convert_fields(self, "model")
        self._check_name()
        require_at_least_one(self, "model", "width", "depth", "vocab", "context")
        require_at_least_one(self, "model", "base_width", "base_depth")
        in_range = 0 <= self.dropout < 1
        require(in_range, "model.dropout", self.dropout, "must lie in [0, 1)")

    def _check_name(self) -> None:
        cls = type(self)
        own = cls.__dataclass_fields__["architecture"].default
        fix = f"give {cls.__name__}.architecture its name, 'package.module:Class'"
        require(bool(own), "model.architecture", own, fix)
        fix = f"{cls.__name__} is the configuration of {own!r}"
        require(self.architecture == own, "model.architecture", self.architecture, fix)

    @classmethod
    def choose_class(cls, values: JsonObject, where: str) -> type[ArchitectureConfig]:
        """The class that a table of values is a configuration of.

        Raises:
            ConfigError: there is no such architecture.
        """
        if cls is not ArchitectureConfig:
            return cls
        path = join_path(where, "architecture")
        return find_config_class(values.get("architecture", DECODER), path)

    @property
    def scanned(self) -> bool:
        """Whether the parameters of the layers are stacked, with a leading layer axis,
        under the name "blocks".
        """
        return False

    @property
    def n_experts(self) -> int:
        """Experts of each layer among which a router chooses; 0 without a router."""
        return 0

    @property
    def trained_layers(self) -> int:
        """Layers in training; those that the trained model does not have each compute
        logits too.
        """
        return self.depth

    @property
    def prefix_tokens(self) -> int:
        """How many tokens at the start of each window are read as a whole: they see each
        other, and the loss counts from the second token after them on. 0 if every token
        sees the tokens before it alone.
        """
        return 0

    @property
    def masking(self) -> Masking | None:
        """How tokens are hidden that the model predicts from both sides; None if it
        predicts the token after each one.
        """
        return None

    def unscan(self) -> ArchitectureConfig:
        """The same model with its layers in a list."""
        return self

    def describe(self) -> JsonObject:
        """Columns of the run table that are the architecture's own, by name."""
        return {}


def find_config_class(name: object, path: str) -> type[ArchitectureConfig]:
    """The class of the configuration of an architecture.

    Args:
        name: One of `ARCHITECTURES`, or "package.module:Class".
        path: Of the field that names it, for messages.

    Raises:
        ConfigError: there is no such architecture, or it has no configuration.
    """
    if isinstance(name, str) and name in ARCHITECTURES:
        return import_class(ARCHITECTURES[name].config, path)
    found = import_class(_require_name(name, path), path)
    config = getattr(found, "Config", None)
    ok = isinstance(config, type) and issubclass(config, ArchitectureConfig)
    fix = "its attribute Config must be a subclass of scaling.ArchitectureConfig"
    require(ok, path, name, fix)
    assert isinstance(config, type)
    fix = f"decorate {config.__name__} with @dataclass(frozen=True)"
    require("__dataclass_fields__" in vars(config), path, name, fix)
    own = config.__dataclass_fields__["architecture"].default
    fix = f"set {config.__name__}.architecture, which is {own!r}, to this name"
    require(own == name, path, name, fix)
    return config


def replace_architecture(config: ArchitectureConfig, name: str) -> ArchitectureConfig:
    """A configuration of another architecture with the settings of this one.

    A setting is a field that departs from its default. Those that the other architecture
    does not have are left out.

    Raises:
        ConfigError: there is no such architecture, or a setting is not valid for it.
    """
    if name == config.architecture:
        return config
    cls = find_config_class(name, "model.architecture")
    plain = type(config)()
    settings: JsonObject = {}
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        is_shared = option.name in cls.__dataclass_fields__
        if is_shared and value != getattr(plain, option.name):
            settings[option.name] = value
    return cls(**settings)


def _require_name(name: object, path: str) -> str:
    if isinstance(name, str) and ":" in name:
        return name
    hint = did_you_mean(str(name), list(ARCHITECTURES), label="architectures")
    raise ConfigError(
        f"{path} = {name!r}: no such architecture; {hint}; one of your own is named "
        "package.module:Class"
    )


def import_class(name: str, path: str) -> type:
    """A class by its name "package.module:Class".

    Raises:
        ConfigError: it cannot be imported.
    """
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may fail in any way when it is imported
        raise ConfigError(
            f"{path} = {name!r}: {_explain_import_error(error, module_name)}"
        ) from None
    found = getattr(module, class_name, None)
    if found is None:
        classes = [
            key for key, value in vars(module).items() if isinstance(value, type)
        ]
        hint = did_you_mean(class_name, classes, label="classes")
        raise ConfigError(
            f"{path} = {name!r}: {module.__file__} has no such class; {hint}"
        )
    require(isinstance(found, type), path, name, "must be a class")
    return found


def _explain_import_error(error: Exception, module_name: str) -> str:
    """What to do about a module that cannot be imported.

    The module itself may be missing; otherwise its own code fails, and the line that
    does is named.
    """
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        is_missing = f"{module_name}.".startswith(f"{error.name}.")
        if is_missing:
            return (
                f"there is no module {error.name!r}; name it package.module:Class, with "
                "its folder on PYTHONPATH"
            )
    text = f"{module_name} fails when it is imported: {type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    at_import = [frame for frame in frames if frame.name == "<module>"]
    if at_import:
        text += f" ({at_import[-1].filename}, line {at_import[-1].lineno})"
    return text
