"""The downstream experiment: its laws on simulated measurements, and a tiny run of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.downstream import measure
from experiments.downstream.__main__ import run_experiment
from experiments.downstream.laws import (
    find_effective_examples,
    fit_transfer,
    fit_two_steps,
    measure_transfer,
    tabulate_two_steps,
)
from experiments.downstream.settings import Settings, TaskChoice, make_quick
from scaling.tasks.estimates import Estimate
from scaling.tasks.evaluate import TaskResult

CHOICE = TaskChoice("addition:digits=1", "addition", "exact_match", "nats", True)
WIDTHS = (16, 24, 40, 64, 96)


def simulate_table(gain: float) -> pd.DataFrame:
    """Fine-tuned models whose exact match is `gain` exp(-loss) above the baseline."""
    rng = np.random.default_rng(0)
    rows = []
    for width in WIDTHS:
        for tokens in (1e6, 4e6):
            N = 24.0 * width**2
            loss = 3 * (N / 6e3) ** -0.2 * (tokens / 1e6) ** -0.1
            loss *= np.exp(0.01 * rng.standard_normal())
            match = 0.05 + gain * np.exp(-loss) + 0.01 * rng.standard_normal()
            model = {
                "task": CHOICE.spec,
                "mode": "fine-tuned",
                "run_id": f"{width} {tokens}",
                "width": width,
                "n_matmul": N,
                "pretraining_tokens": tokens,
                "pretraining_loss": loss / 2,
                "standard_error": 0.01,
                "chance": np.nan,
            }
            rows.append(model | {"metric": "nats", "value": loss, "majority": np.nan})
            rows.append(
                model | {"metric": "exact_match", "value": match, "majority": 0.05}
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("first", ["N and D", "pre-training loss"])
def test_the_widest_models_are_predicted_and_not_fitted(first: str) -> None:
    settings = Settings(draws=100)
    table = simulate_table(gain=1.5)
    step = fit_two_steps(table, CHOICE, "fine-tuned", first, settings)
    assert step.loss_fit is not None and len(step.loss_fit.residuals) == 8
    found = tabulate_two_steps([step])
    assert found["is_covered"].tolist() == [True, True]
    # The measured values of the widest models do not enter what is predicted.
    is_widest = table["width"] == WIDTHS[-1]
    table.loc[is_widest, "value"] *= 2
    changed = fit_two_steps(table, CHOICE, "fine-tuned", first, settings)
    assert [x.error for x in changed.predictions] == [x.error for x in step.predictions]


def test_a_task_at_its_baseline_is_not_predicted() -> None:
    table = simulate_table(gain=0.0)
    table.loc[table["metric"] == "exact_match", "value"] = 0.05
    step = fit_two_steps(table, CHOICE, "fine-tuned", "N and D", Settings(draws=50))
    assert not step.is_learned and not step.predictions
    assert tabulate_two_steps([step])["outcome"].tolist() == ["at the baseline"]


def test_effective_examples_are_interpolated_and_never_extrapolated() -> None:
    examples = np.array([10.0, 100.0, 1000.0])
    losses = np.array([3.0, 2.0, 1.0])
    found, outcome = find_effective_examples(examples, losses, 1.5)
    assert outcome == "measured" and found == pytest.approx(100 * 10**0.5)
    assert "beyond" in find_effective_examples(examples, losses, 0.9)[1]
    assert "below" in find_effective_examples(examples, losses, 3.1)[1]
    # More examples that give a higher loss count as those that reached it first.
    bumpy = np.array([2.0, 2.5, 1.0])
    assert find_effective_examples(examples, bumpy, 2.0)[0] == pytest.approx(10)


def test_the_law_of_transfer_is_found_again() -> None:
    """From-scratch loss ln(1e5 / D); fine-tuned the same at D_F + D_T."""
    rows = []
    for width in WIDTHS:
        N = 24.0 * width**2
        for examples in (50, 200, 800, 3200, 100_000):
            loss = np.log(1e6 / examples)
            rows.append(("from scratch", width, N, 0, examples, loss))
        for examples in (50, 200, 800):
            transferred = 8 * examples**0.4 * N**0.3
            loss = np.log(1e6 / (examples + transferred))
            rows.append(("fine-tuned", width, N, 4e6, examples, loss))
    columns = ["mode", "width", "n_matmul", "pretraining_tokens", "examples", "loss"]
    children = pd.DataFrame(rows, columns=columns).assign(task="t")
    measured = measure_transfer(children)
    assert measured["outcome"].tolist() == ["measured"] * 15
    law = next(fit_transfer(measured, draws=50))
    assert law.fit is not None
    assert law.fit.params["p_D_F"] == pytest.approx(0.4, abs=1e-3)
    assert law.fit.params["p_N"] == pytest.approx(0.3, abs=1e-3)
    assert np.allclose(law.held_out["predicted"], law.held_out["D_T"], rtol=1e-3)


@pytest.mark.parametrize(("is_trained", "accuracy"), [(True, 0.6), (False, 0.4)])
def test_choices_are_compared_by_the_byte_before_training_on_the_task(
    is_trained: bool, accuracy: float
) -> None:
    metrics = {
        "accuracy": Estimate(0.6, 0.1),
        "accuracy_per_byte": Estimate(0.4, 0.1),
    }
    found = TaskResult(
        task="t",
        fingerprint="",
        n=10,
        documents=10,
        metrics=metrics,
        baselines={"chance": {"accuracy": 0.5, "accuracy_per_byte": 0.5}},
        predictions=pd.DataFrame(),
        confusion=None,
        shots=0,
    )
    (row,) = measure.list_metrics(found, is_trained)
    assert (row["metric"], row["value"], row["chance"]) == ("accuracy", accuracy, 0.5)


@pytest.mark.slow
def test_a_tiny_experiment_runs_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(200):
        numbers = [f"{i}+{k}={i + k}" for k in range(300)]
        (texts / f"{i}.txt").write_text("\n".join(numbers))
    task = TaskChoice(
        "addition:digits=1", "addition", "exact_match", "answer_bits_per_byte", True
    )
    monkeypatch.setattr(
        measure,
        "PERPLEXITY",
        measure.PERPLEXITY._replace(
            spec=f"perplexity:source={texts},heldout_fraction=0.02"
        ),
    )
    settings = dataclasses.replace(
        make_quick(Settings()),
        out=tmp_path / "out",
        source=str(texts),
        widths=(16, 24),
        tokens=(105_000, 130_000),
        task_tokens=300,
        fewer=(),
        limit=4,
        documents=2,
        draws=20,
        workers=0,
        tasks=(task,),
    )
    report = run_experiment(settings)
    text = report.read_text()
    assert "| addition | exact_match |" in text
    table = pd.read_csv(settings.out / "table.csv")
    modes = {"zero-shot", "few-shot", "fine-tuned", "from scratch"}
    assert set(table["mode"]) == modes
    assert np.isfinite(table["value"].to_numpy(float)).all()
    assert len(set(table["run_id"])) == 10
    for name in ("metrics", "two_steps", "transfer"):
        assert (settings.out / f"{name}.png").stat().st_size > 1000

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was measured again")

    monkeypatch.setattr(measure, "load", refuse)
    assert run_experiment(settings).read_text() == text
