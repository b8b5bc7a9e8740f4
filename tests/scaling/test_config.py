"""Laws of the configuration: equal configurations are one run, and nothing invalid is
ever built.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    canonical_json,
    from_dict,
    read_toml,
    to_dict,
)

T = TypeVar("T")


def changed(**changes: Any) -> RunConfig:
    """The default run with changes by `table__field`."""
    values = to_dict(RunConfig())
    for path, value in changes.items():
        *tables, name = path.split("__")
        table = values[tables[0]] if tables else values
        table[name] = value
    return from_dict(RunConfig, values)


def construct(cls: type[T], **values: Any) -> T:
    """`cls(**values)` as users run it: without the type checks that are on in these
    tests.
    """
    config = object.__new__(cls)
    for name, default in vars(cls()).items():
        object.__setattr__(config, name, values.get(name, default))
    config.__post_init__()  # pyright: ignore[reportAttributeAccessIssue]
    return config


@settings(deadline=None, max_examples=50)
@given(
    width=st.sampled_from([24, 64, 96]),
    lr=st.floats(1e-6, 1.0),
    clip=st.none() | st.floats(0.1, 10.0),
    budget=st.none() | st.floats(1.0, 1e20),
)
def test_round_trip_through_json(
    width: int, lr: float, clip: float | None, budget: float | None
) -> None:
    run = changed(
        model__width=width, optim__lr=lr, optim__clip_norm=clip, budget=budget
    )
    back = from_dict(RunConfig, json.loads(json.dumps(to_dict(run))))
    assert back == run and back.run_id == run.run_id and back.trunk_id == run.trunk_id


def test_equal_configurations_are_one_run_whatever_the_type_of_their_numbers() -> None:
    optim = construct(OptimConfig, lr=1, weight_decay=0, clip_norm=1)
    whole = construct(
        RunConfig,
        model=construct(ModelConfig, ff_ratio=4),
        optim=optim,
        tokens=np.int64(1_000_000),
    )
    optim = OptimConfig(lr=1.0, weight_decay=0.0, clip_norm=1.0)
    point = RunConfig(ModelConfig(ff_ratio=4.0), DataConfig(), optim, 1_000_000)
    assert whole == point and whole.run_id == point.run_id
    assert (
        from_dict(RunConfig, to_dict(whole)).run_id == whole.run_id
    )  # what a worker process is sent


def test_everything_but_a_label_decides_the_run_id() -> None:
    run = RunConfig()
    assert dataclasses.replace(run, budget=1e9).run_id == run.run_id
    others = [
        {"tokens": 2_000_000},
        {"seed": 1},
        {"eval_tokens": 4096},
        {"model__width": 96},
        {"model__tied": True},
        {"data__source": "sotu"},
        {"data__seed": 1},
        {"optim__lr": 1e-3},
        {"optim__accumulate": 2},
    ]
    ids = {changed(**change).run_id for change in others} | {run.run_id}
    assert len(ids) == len(others) + 1


def test_canonical_json_depends_on_the_values_alone() -> None:
    text = '{"a":{"c":"x","d":true},"b":[1,2.5,null]}'
    assert canonical_json({"b": [1, 2.5, None], "a": {"d": True, "c": "x"}}) == text
    assert canonical_json({"a": {"c": "x", "d": True}, "b": [1, 2.5, None]}) == text


def test_a_trunk_is_shared_across_token_budgets_and_cooldowns_only() -> None:
    run = RunConfig()
    shared = [
        {"tokens": 2_000_000},
        {"optim__cooldown_fraction": 0.1},
        {"optim__schedule": "wsd_1sqrt"},
        {"budget": 1e12},
    ]
    assert {changed(**change).trunk_id for change in shared} == {run.trunk_id}
    apart = [
        {"optim__schedule": "inverse_sqrt"},
        {"seed": 1},
        {"optim__lr": 1e-3},
        {"model__depth": 2},
    ]
    ids = {changed(**change).trunk_id for change in apart}
    assert len(ids) == len(apart) and run.trunk_id not in ids


def test_cosine_runs_of_different_length_share_no_trunk() -> None:
    runs = [
        changed(optim__schedule="cosine", tokens=tokens)
        for tokens in (1_000_000, 2_000_000)
    ]
    assert runs[0].trunk_id != runs[1].trunk_id
    assert [run.branch_step for run in runs] == [0, 0]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [512, 1_000_000, 1_234_567])
def test_steps_and_branch_step(fraction: float, tokens: int) -> None:
    shape = {"optim__batch_size": 4, "model__context": 128}
    run = changed(**shape, tokens=tokens, optim__cooldown_fraction=fraction)
    assert run.batch_tokens == 512
    assert tokens - run.batch_tokens < run.steps * run.batch_tokens <= tokens
    assert run.branch_step + round(fraction * run.steps) == run.steps


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "modle: unknown key of RunConfig; did you mean 'model'"),
        (
            {"model": {"widht": 64}},
            "model.widht: unknown key of ModelConfig; did you mean 'width'",
        ),
        (
            {"optim": {"zzz": 1}},
            "optim.zzz: unknown key of OptimConfig; known keys: accumulate",
        ),
        ({"model": {"width": "64"}}, "model.width = '64': must be int"),
        ({"model": {"width": 64.5}}, "model.width = 64.5: must be a whole number"),
        ({"model": {"width": True}}, "model.width = True: must be int"),
        ({"model": {"tied": 1}}, "model.tied = 1: must be bool"),
        (
            {"model": {"norm": "rms"}},
            "model.norm = 'rms': choose one of 'rmsnorm', 'nonparametric_rmsnorm', "
            "'layernorm', 'none'",
        ),
        ({"model": 3}, "model = 3: must be a table"),
        ({"optim": {"lr": None}}, "optim.lr = None: must be float"),
        ({"optim": {"lr": float("nan")}}, "optim.lr = nan: must be finite"),
        ({"optim": {"lr": float("inf")}}, "optim.lr = inf: must be finite"),
        ([], r"RunConfig = \[\]: must be a table"),
    ],
)
def test_malformed_values_are_named(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(RunConfig, values)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        *(
            ({f"model__{name}": 0}, f"model.{name}")
            for name in ("width", "depth", "n_heads", "vocab", "context")
        ),
        ({"model__ff_ratio": 0}, "model.ff_ratio"),
        ({"model__dropout": 1.0}, "model.dropout"),
        (
            {"model__width": 65},
            "model.width = 65: must be a multiple of model.n_heads = 4",
        ),
        ({"model__head_dim": 0}, "model.head_dim"),
        ({"model__width": 68}, "head dimension = 17: must be even"),
        ({"model__base_width": 0}, "model.base_width"),
        ({"data__source": ""}, "data.source"),
        ({"data__heldout_fraction": 0.0}, "data.heldout_fraction"),
        ({"data__heldout_fraction": 1.0}, "data.heldout_fraction"),
        ({"data__unique_tokens": 0}, "data.unique_tokens"),
        ({"data__seed": -1}, "data.seed"),
        ({"optim__lr": 0.0}, "optim.lr"),
        ({"optim__batch_size": 0}, "optim.batch_size"),
        (
            {"optim__batch_size": 6, "optim__accumulate": 4},
            "optim.batch_size = 6: must be a multiple of",
        ),
        ({"optim__warmup_tokens": -1}, "optim.warmup_tokens"),
        ({"optim__cooldown_fraction": 1.1}, "optim.cooldown_fraction"),
        ({"optim__weight_decay": -0.1}, "optim.weight_decay"),
        ({"optim__beta1": 1.0}, "optim.beta1"),
        ({"optim__beta2": -0.1}, "optim.beta2"),
        ({"optim__epsilon": -1e-8}, "optim.epsilon"),
        ({"optim__clip_norm": 0.0}, "optim.clip_norm"),
        ({"eval_tokens": 0}, "eval_tokens"),
        ({"tokens": 511}, "tokens = 511: must hold at least one step of 512 tokens"),
        ({"seed": -1}, "seed"),
    ],
)
def test_invalid_values_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        changed(**changes)


def test_construction_checks_types_as_parsing_does() -> None:
    with pytest.raises(ConfigError, match=r"model\.norm = 'rms': choose one of"):
        construct(ModelConfig, norm="rms")
    with pytest.raises(ConfigError, match=r"optim\.lr = '1e-3': must be float"):
        construct(OptimConfig, lr="1e-3")


def test_toml_presets(tmp_path: Path) -> None:
    path = tmp_path / "preset.toml"
    path.write_text("tokens = 2_000_000\n[model]\nwidth = 96\n[optim]\nlr = 1\n")
    run = read_toml(path, RunConfig)
    assert (run.tokens, run.model.width, run.optim.lr) == (2_000_000, 96, 1.0)
    path.write_text("tokens = \n")
    with pytest.raises(ConfigError, match=r"preset\.toml.*not valid TOML"):
        read_toml(path, RunConfig)
    with pytest.raises(ConfigError, match="no such file"):
        read_toml(tmp_path / "absent.toml", RunConfig)
