"""Laws of all architectures: the configuration, the counts, and what the module
computes.

Axes: B batch, T position.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling.config import (
    ARCHITECTURES,
    ArchitectureConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    RunConfig,
    from_dict,
    to_dict,
)
from scaling.config.architecture import find_config_class, replace_architecture
from scaling.data import load_dataset
from scaling.execution import conformance
from scaling.execution.conformance import NotApplicable, Subject
from scaling.model.architecture import (
    Architecture,
    Call,
    find_architecture,
    trace_forward,
)
from scaling.model.architectures.convolution import ConvolutionConfig
from scaling.model.architectures.linear_attention import (
    LinearAttentionConfig,
    attend_linearly,
)
from scaling.model.architectures.lstm import LstmConfig
from scaling.model.family import build_family
from scaling.model.flops import count_parameters, forward_flops_per_token
from scaling.model.layers import Embedding, Readout, give_role, make_weight
from scaling.model.parametrization import bind_parametrization
from scaling.planning.memory import estimate_gpu_footprint
from scaling.planning.plan import grid_plan
from scaling.store import run_dirs
from scaling.training.loop import check_fits

SMALL = {"width": 16, "depth": 2, "vocab": 32, "context": 24, "base_width": 16}
OWN = f"{__name__}:Bigram"
DATA = Path(__file__).parents[2] / "data"
STORED_SHAPES: dict[str, dict[str, list[int]]] = json.loads(
    (DATA / "parameter_shapes.json").read_text()
)


@dataclasses.dataclass(frozen=True)
class BigramConfig(ArchitectureConfig):
    architecture: str = OWN
    hidden: int = 8
    later: int = dataclasses.field(default=3, metadata={"introduced_as": 3})


class Bigram(Architecture):
    """Each token predicts the next one by itself, through other libraries' layers."""

    Config = BigramConfig

    def __init__(self, config: BigramConfig, rngs: nnx.Rngs) -> None:
        rules = bind_parametrization(config)
        self.embedding = Embedding(rules, rngs)
        self.up = nnx.Linear(config.width, config.width, rngs=rngs)
        give_role(
            self.up.kernel,
            rules,
            "hidden",
            fan_in=config.width,
            base_fan_in=config.base_width,
        )
        assert self.up.bias is not None
        give_role(self.up.bias, rules, "bias")
        self.head = Readout(rules, rngs)

    def __call__(self, tokens_BxT: jax.Array, call: Call) -> jax.Array:
        x = jax.nn.gelu(self.up(self.embedding(tokens_BxT)))
        return call.tap("logits", self.head(call.tap("hidden", x)))


@pytest.fixture(params=[*ARCHITECTURES, OWN])
def config(request: pytest.FixtureRequest) -> ArchitectureConfig:
    return find_config_class(request.param, "architecture")(**SMALL)


# --- the configuration ----------------------------------------------------------------


def test_a_configuration_is_read_as_it_was_written(config: ArchitectureConfig) -> None:
    run = RunConfig(model=config)
    values = to_dict(run)
    assert from_dict(RunConfig, values) == run
    if config.architecture == "decoder":  # as it was written before there were others
        del values["model"]["architecture"]
        assert from_dict(RunConfig, values) == run


def test_architectures_of_equal_sizes_have_different_ids() -> None:
    runs = [
        RunConfig(model=find_config_class(name, "architecture")(**SMALL))
        for name in (*ARCHITECTURES, OWN)
    ]
    assert len({run.run_id for run in runs}) == len(runs)


def test_every_field_of_an_architecture_enters_the_id_unless_it_came_later() -> None:
    plain = RunConfig(model=BigramConfig()).run_id
    assert RunConfig(model=BigramConfig(hidden=9)).run_id != plain
    assert RunConfig(model=BigramConfig(later=4)).run_id != plain

    @dataclasses.dataclass(frozen=True)
    class Before(ArchitectureConfig):
        architecture: str = OWN
        hidden: int = 8

    @dataclasses.dataclass(frozen=True)
    class OtherDefault(ArchitectureConfig):
        architecture: str = OWN
        hidden: int = 9

    assert RunConfig(model=Before()).run_id == plain
    assert RunConfig(model=OtherDefault()).run_id != plain


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("lstn", "no such architecture; did you mean 'lstm'"),
        ("nowhere:Model", "there is no module 'nowhere'"),
        (f"{__name__}.nowhere:Model", "there is no module"),
        (f"{__name__}:Biggram", "has no such class; did you mean 'Bigram'"),
        (f"{__name__}:SMALL", "must be a class"),
        (f"{__name__}:BigramConfig", "its attribute Config must be a subclass"),
        (3, "no such architecture"),
    ],
)
def test_an_unknown_architecture_is_named(name: object, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        from_dict(RunConfig, {"model": {"architecture": name}})


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("x = 1\nimport nowhere", r"No module named 'nowhere' \(.*broken.py, line 2\)"),
        ("x = 1 / 0", r"fails when it is imported: ZeroDivisionError.*line 1\)"),
        ("x = = 1", r"SyntaxError: .*broken.py, line 1"),
    ],
)
def test_a_module_that_fails_is_named_with_its_line(
    code: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(ConfigError, match=match):
        find_config_class("broken:Model", "architecture")


def test_a_configuration_must_be_a_dataclass_of_its_own() -> None:
    class Plain(BigramConfig):
        architecture: str = f"{__name__}:Forgotten"

    class Forgotten(Bigram):
        Config = Plain

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ConfigError, match=r"decorate Plain with @dataclass"),
    ):
        patch.setitem(globals(), "Forgotten", Forgotten)
        find_config_class(f"{__name__}:Forgotten", "architecture")


def test_a_configuration_has_its_own_name_alone() -> None:
    with pytest.raises(ConfigError, match="ModelConfig is the configuration of"):
        ModelConfig(architecture="lstm")


def test_another_architecture_keeps_the_settings_that_it_has() -> None:
    decoder = ModelConfig(depth=3, head_dim=8, n_heads=2, ff_ratio=3.0)
    found = replace_architecture(decoder, "linear_attention")
    assert found == LinearAttentionConfig(depth=3, head_dim=8, n_heads=2, ff_ratio=3.0)
    assert replace_architecture(ModelConfig(depth=3), "lstm") == LstmConfig(depth=3)
    assert replace_architecture(ModelConfig(), "convolution") == ConvolutionConfig()


def test_an_option_that_is_not_honored_is_refused() -> None:
    for changes, match in (
        ({"dropout": 0.1}, "model.dropout = 0.1: .* does not honor 'dropout'"),
        ({"remat": True}, "model.remat = True"),
        ({"parametrization": "umup"}, "model.parametrization = 'umup'"),
    ):
        with pytest.raises(ConfigError, match=match):
            build_family(BigramConfig(**SMALL, **changes))


# --- the counts -----------------------------------------------------------------------


def test_the_traced_program_of_a_decoder_has_its_closed_form() -> None:
    for options in (
        {},
        {"activation": "swiglu", "tied": True},
        {"n_kv_heads": 2, "attention_gate": True, "attention_sink": True},
        {"n_kv_heads": 2, "value_residual": True},
        {"scan_layers": "always", "remat": True, "parallel_blocks": True},
        {"prefix": 0.25},
    ):
        decoder = ModelConfig(**SMALL, **options)
        traced = trace_forward(find_architecture(decoder), decoder).flops
        closed = forward_flops_per_token(decoder, causal=False) * decoder.context
        assert traced == pytest.approx(closed, rel=1e-12)


def test_default_counts_of_a_decoder_are_its_closed_forms() -> None:
    """Parameters exactly, bytes of activations to a third."""
    for tied in (False, True):
        decoder = ModelConfig(width=64, depth=2, tied=tied)
        architecture = find_architecture(decoder)
        default = Architecture.count_parameters.__func__(architecture, decoder)
        assert default == count_parameters(decoder)
        layer = Architecture.count_layer_bytes.__func__(architecture, decoder)
        assert layer == pytest.approx(architecture.count_layer_bytes(decoder), rel=0.34)


def test_the_flops_of_an_lstm_are_those_of_its_gates() -> None:
    lstm = LstmConfig(**SMALL)
    weights = 2 * 2 * 4 * 16 * 16 + 16 * 32
    assert forward_flops_per_token(lstm) == 2 * weights
    assert count_parameters(lstm).n_matmul == weights


def test_every_architecture_can_be_planned_and_described(
    config: ArchitectureConfig,
) -> None:
    plan = grid_plan(
        [16, 32],
        [20_000],
        model=config,
        min_steps=1,
        min_tokens_per_parameter=0.0,
        warmup_fraction=0.1,
    )
    assert len(plan.table()) == 2
    row = run_dirs.describe_run(plan.runs[0])
    assert row["architecture"] == config.architecture
    assert estimate_gpu_footprint(plan.runs[0], devices=1).total > 0


# --- the module -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Subject]:
    """One model of each architecture, which is not trained."""
    subjects: dict[str, Subject] = {}

    def open_one(config: ArchitectureConfig) -> Subject:
        if config.architecture not in subjects:
            folder = tmp_path_factory.mktemp("subject")
            subject = Subject(config, folder)
            subject.__dict__["params"] = subject.family.init(0)
            subjects[config.architecture] = subject
        return subjects[config.architecture]

    return open_one


@pytest.mark.parametrize(
    "check",
    [
        conformance.check_parameters,
        conformance.check_logits,
        conformance.check_causality,
        conformance.check_examples,
        conformance.check_dropout,
        conformance.check_flops,
        conformance.check_decoding,
    ],
    ids=lambda check: check.__name__,
)
def test_the_laws_of_one_process_hold(
    open_subject: Callable[..., Subject],
    config: ArchitectureConfig,
    check: Callable[[Subject], str],
) -> None:
    try:
        assert check(open_subject(config))
    except NotApplicable:
        assert config.architecture == OWN or (
            config.prefix_tokens > 0
            and check in (conformance.check_examples, conformance.check_decoding)
        )


@pytest.mark.parametrize("name", STORED_SHAPES)
def test_parameters_have_the_names_under_which_runs_store_them(name: str) -> None:
    """Those of the commit that introduced each architecture."""
    config = find_config_class(name, "architecture")(**SMALL)
    params = jax.eval_shape(lambda: build_family(config).init(0))
    found: dict[str, list[int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        key = jax.tree_util.keystr(path, simple=True, separator=".")
        found[key] = list(leaf.shape)
    assert found == STORED_SHAPES[name]


def test_linear_attention_is_the_sum_that_it_stands_for() -> None:
    """Against the double sum, whatever the chunk, with segments across chunks."""
    B, T, H, K = 2, 13, 2, 4
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, H, K)) for _ in range(3))
    log_decay = -rng.exponential(0.3, size=(B, T, H))
    segments = np.sort(rng.integers(0, 3, size=(B, T)), axis=1)
    expected = np.zeros((B, T, H, K))
    for b, t, h in np.ndindex(B, T, H):
        for s in range(t + 1):
            if segments[b, s] != segments[b, t]:
                continue
            decay = np.exp(log_decay[b, s + 1 : t + 1, h].sum())
            expected[b, t, h] += q[b, t, h] @ k[b, s, h] * decay * v[b, s, h]
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v, log_decay)]
    for chunk in (4, 32):
        found = attend_linearly(*arrays, chunk, jnp.asarray(segments))
        assert np.abs(np.asarray(found) - expected).max() < 1e-5


def test_a_strong_decay_has_a_finite_gradient() -> None:
    """Differences of sums of decays, which are masked, would overflow."""
    x = jnp.ones((1, 16, 1, 2))
    log_decay = jnp.full((1, 16, 1), -200.0)

    def total(log_decay: jax.Array) -> jax.Array:
        return attend_linearly(x, x, x, log_decay, 8).sum()

    assert bool(jnp.isfinite(jax.grad(total)(log_decay)).all())


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_convolution_sees_as_far_as_its_kernels_reach(pooling: str) -> None:
    """Kernels of 3 at steps 1 and 2, each with a pool of 2: 1 + 2 + 1 + 4 + 1."""
    convolution = ConvolutionConfig(**SMALL, kernel=3, pooling=pooling)
    family = build_family(convolution)
    params = family.init(0)
    tokens = jnp.zeros((1, 24), jnp.int32)
    changed = tokens.at[0, 5].set(1)
    before, after = family.apply(params, tokens), family.apply(params, changed)
    seen = np.flatnonzero(np.abs(np.asarray(before - after)).max(axis=(0, 2)) > 0)
    assert seen.tolist() == list(range(5, 5 + 9))


# --- wrong modules --------------------------------------------------------------------


class Unroled(Bigram):
    """Its layer has parameters without roles."""

    Config = BigramConfig

    def __init__(self, config: BigramConfig, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs)
        self.extra = nnx.Linear(2, 2, rngs=rngs)


class Acausal(Bigram):
    Config = BigramConfig

    def __call__(self, tokens_BxT: jax.Array, call: Call) -> jax.Array:
        logits = super().__call__(tokens_BxT, call)
        return logits + 0.01 * jnp.roll(logits, -1, axis=1)


class Miscounted(Bigram):
    Config = BigramConfig

    @classmethod
    def count_forward_flops(
        cls, config: ArchitectureConfig, *, causal: bool = True
    ) -> float:
        return 1.01 * super().count_forward_flops(config, causal=causal)


class Leaking(Bigram):
    """It claims to keep sequences apart, and hands a sum on from the one before."""

    Config = BigramConfig
    honors: ClassVar = frozenset({"segments", "dropout"})

    def __call__(self, tokens_BxT: jax.Array, call: Call) -> jax.Array:
        logits = super().__call__(tokens_BxT, call)
        return logits + 0.01 * jnp.cumsum(logits, axis=1)


class Unscaled(Bigram):
    """It multiplies by the width, which muP knows nothing of."""

    Config = BigramConfig

    def __call__(self, tokens_BxT: jax.Array, call: Call) -> jax.Array:
        x = self.up(self.embedding(tokens_BxT)) * self.up.kernel[...].shape[0]
        return call.tap("logits", self.head(call.tap("hidden", x)))


class Double(Bigram):
    """It returns a pair."""

    Config = BigramConfig

    def __call__(self, tokens_BxT: jax.Array, call: Call) -> jax.Array:
        logits = super().__call__(tokens_BxT, call)
        return (logits, logits)  # type: ignore[return-value]


class Failing(Bigram):
    Config = BigramConfig

    def __call__(self, tokens_BxT: jax.Array, call: Call) -> jax.Array:
        raise ValueError("no such shape")


def make_subject(module: type[Architecture], folder: Path) -> Subject:
    """A subject whose module is another one than its configuration names."""

    class Other(Subject):
        @property
        def architecture(self) -> type[Architecture]:
            return module

    return Other(BigramConfig(**SMALL), folder)


@pytest.mark.parametrize(
    ("module", "check", "match"),
    [
        (Double, conformance.check_logits, "it returns tuple, not float32"),
        (Acausal, conformance.check_causality, "depend on the token at"),
        (Miscounted, conformance.check_flops, "the products of its program are"),
        (Leaking, conformance.check_examples, "they change by"),
        (Leaking, conformance.check_dropout, "changes nothing"),
        pytest.param(
            *(Unscaled, conformance.check_coordinates, r"to \+"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_wrong_module_breaks_its_law(
    module: type[Architecture],
    check: Callable[[Subject], str],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find(config: ArchitectureConfig) -> type[Architecture]:
        return module

    for place in ("family", "flops"):
        monkeypatch.setattr(f"scaling.model.{place}.find_architecture", find)
    subject = make_subject(module, tmp_path)
    subject.__dict__["params"] = build_family(subject.model).init(0)
    with pytest.raises(conformance.LawBroken, match=match):
        check(subject)


def test_without_logits_nothing_else_is_checked_and_the_line_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in ("scaling.model.family", "scaling.execution.conformance"):
        monkeypatch.setattr(f"{place}.find_architecture", lambda config: Failing)
    (result,) = conformance.check_architecture(BigramConfig(**SMALL))
    assert result.verdict == "failed"
    assert "ValueError: no such shape (" in result.finding
    assert f"{Path(__file__).name}, line " in result.finding


def test_a_parameter_without_a_role_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "scaling.model.family.find_architecture", lambda config: Unroled
    )
    with pytest.raises(
        ConfigError, match=r"Unroled: extra.bias is Param and has no role"
    ):
        build_family(BigramConfig(**SMALL))


def test_a_role_that_multiplies_is_refused_for_other_layers() -> None:
    wider = BigramConfig(**{**SMALL, "width": 32}, parametrization="ntk_full")
    with pytest.raises(ConfigError, match="multiplies the output of role 'hidden'"):
        build_family(wider)


def test_a_vector_needs_no_fan_in_and_a_matrix_does() -> None:
    rules = bind_parametrization(BigramConfig(**SMALL))
    rate = nnx.Param(jnp.linspace(-1.0, 1.0, 16))
    give_role(rate, rules, "gain")
    assert rate.get_metadata()["rule"] == rules.rule("gain", 16)
    with pytest.raises(ConfigError, match="role 'hidden': give fan_in"):
        give_role(rate, rules, "hidden")
    with pytest.raises(ConfigError, match="role 'readout': give fan_in"):
        make_weight(rules, nnx.Rngs(0), "readout", (16, 32))


def test_a_task_needs_sequences_that_are_kept_apart() -> None:
    run = RunConfig(model=BigramConfig(vocab=256), data=DataConfig("task:addition"))
    dataset = load_dataset(run.data)
    with pytest.raises(ConfigError, match="does not keep the sequences of a row apart"):
        check_fits(run, dataset)
