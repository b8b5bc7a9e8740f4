"""Laws of the batch and duration rules: they compose, batch and tokens cancel, and what
they cannot do is refused.
"""

from __future__ import annotations

import dataclasses

import pytest

from scaling.config import ConfigError, ModelConfig, OptimConfig, RunConfig
from scaling.planning.lr_rules import rescale_optim, set_warmup

OPTIM = OptimConfig(lr=4e-3, weight_decay=1e-4, beta1=0.9, beta2=0.95, epsilon=1e-8)


def values(optim: OptimConfig) -> list[float]:
    return [
        optim.lr,
        optim.epsilon,
        optim.weight_decay,
        1 - optim.beta1,
        1 - optim.beta2,
    ]


def test_the_rules_are_those_of_the_table() -> None:
    """m_B = 2, m_D = 8; lambda = weight_decay / lr is the weight decay in AdamW's
    convention.
    """
    moved = rescale_optim(OPTIM, batch_ratio=2.0, data_ratio=8.0)
    assert values(moved) == pytest.approx([2e-3, 2e-8, 0.25e-4, 0.025, 0.0125])
    assert moved.weight_decay / moved.lr == pytest.approx(
        OPTIM.weight_decay / OPTIM.lr / 2
    )


def test_a_batch_that_grows_with_the_tokens_changes_nothing() -> None:
    assert (
        rescale_optim(OPTIM, batch_ratio=3.0, data_ratio=3.0)
        == OPTIM
        == rescale_optim(OPTIM)
    )


def test_a_beta_may_become_zero() -> None:
    optim = dataclasses.replace(OPTIM, beta1=0.5)
    assert rescale_optim(optim, batch_ratio=2.0).beta1 == 0.0


def test_no_move_leaves_every_digit_of_a_beta() -> None:
    beta = 0.1
    assert 1 - (1 - beta) != beta
    optim = dataclasses.replace(OPTIM, beta1=beta, beta2=beta)
    assert rescale_optim(optim, batch_ratio=7.0, data_ratio=7.0) == optim


def test_two_moves_are_one() -> None:
    there = rescale_optim(
        rescale_optim(OPTIM, data_ratio=3.0), batch_ratio=2.0, data_ratio=1.5
    )
    assert values(there) == pytest.approx(
        values(rescale_optim(OPTIM, batch_ratio=2.0, data_ratio=4.5)), rel=1e-12
    )
    assert values(rescale_optim(there, batch_ratio=2.25)) == pytest.approx(
        values(OPTIM), rel=1e-12
    )


def test_only_what_the_rules_speak_of_is_changed() -> None:
    moved = rescale_optim(OPTIM, data_ratio=2.0)
    same = {
        name: getattr(OPTIM, name)
        for name in ("lr", "epsilon", "weight_decay", "beta1", "beta2")
    }
    assert dataclasses.replace(moved, **same) == OPTIM


@pytest.mark.parametrize(
    ("optim", "ratios", "message"),
    [
        (
            OPTIM,
            {"batch_ratio": 11.0},
            r"optim.beta1 = 0.9: becomes negative above .* = 10, and 11 is asked for",
        ),
        (OPTIM, {"data_ratio": 0.0}, "data_ratio = 0.0: must be positive"),
        (OPTIM, {"batch_ratio": float("nan")}, "batch_ratio = nan: must be positive"),
        (
            dataclasses.replace(OPTIM, optimizer="sgd"),
            {},
            "optim.optimizer = 'sgd': .* are those of adamw",
        ),
    ],
)
def test_what_the_rules_cannot_do_is_refused(
    optim: OptimConfig, ratios: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rescale_optim(optim, **ratios)


@pytest.mark.parametrize("lengths", [(100, 300, 200), (300, 100, 200), (200, 300, 100)])
def test_the_shortest_run_of_a_trunk_sets_its_warm_up(lengths: tuple[int, ...]) -> None:
    """In any order, whatever warm-ups the runs had; another size has its own."""
    runs = []
    for steps in lengths:
        optim = dataclasses.replace(OPTIM, batch_size=2, warmup_tokens=steps)
        model = ModelConfig(context=128)
        runs.append(RunConfig(model, optim=optim, tokens=steps * 256))
    wider = dataclasses.replace(runs[0], model=ModelConfig(context=128, width=128))
    *same, other = set_warmup([*runs, wider], 0.1)
    assert [run.optim.warmup_tokens for run in same] == [100 * 256 // 10] * 3
    assert other.optim.warmup_tokens == lengths[0] * 256 // 10
    assert [run.tokens for run in same] == [run.tokens for run in runs]
