"""docs/guides/fit.md: its snippets run, and its table of laws is the registry."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.laws.catalog import (
    describe_variable,
    explain_law,
    find_law,
    format_table,
)
from analysis.laws.curves import CURVE_LAWS
from analysis.laws.library import LAWS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "guides" / "fit.md").read_text(encoding="utf-8")


def foreign(table):
    return table.assign(
        params=table["N"] / 1e6, seen=table["D"], val_loss=table["loss"]
    )[["params", "seen", "val_loss"]]


def write_rates(table):
    """Each run at four learning rates, of which none is the best."""
    tried = []
    for factor in (0.4, 0.9, 1.6, 3.0):
        lr = 2.0 * factor * table["N"] ** -0.3
        loss = table["loss"] * (1 + 0.02 * np.log(factor) ** 2)
        tried.append(table.assign(lr=lr, loss=loss))
    foreign(pd.concat(tried)).assign(lr=pd.concat(tried)["lr"]).to_csv("rates.csv")


def write_tasks():
    """Accuracies that emerge below a loss of 2.9."""
    loss = np.linspace(2.1, 3.6, 16)
    noise = 0.004 * np.random.default_rng(0).standard_normal(16)
    accuracy = 0.25 + 0.5 * np.maximum(2.9 - loss, 0.0) + noise
    table = pd.DataFrame({"loss": loss, "accuracy": accuracy})
    table.to_csv("tasks.csv", index=False)


@pytest.fixture
def known_laws():
    before = dict(LAWS)
    yield
    LAWS.clear()
    LAWS.update(before)


def test_snippets_run_in_order(sweep, tmp_path, monkeypatch, known_laws):
    monkeypatch.chdir(tmp_path)
    foreign(sweep(0.002)).to_csv("runs.csv", index=False)
    foreign(sweep(0.002, seed=1)).assign(
        val_loss=lambda t: 0.99 * t["val_loss"]
    ).to_csv("other.csv", index=False)
    line = sweep()
    line.assign(D=20 * line["N"] * (1 + 1e-12 * np.arange(len(line)))).drop(
        columns=["C", "budget"]
    ).to_csv("line.csv")
    write_rates(sweep(0.002))
    write_tasks()
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    for block in blocks:
        exec(compile(block, "docs/guides/fit.md", "exec"), names)
    assert (tmp_path / "comparison.png").exists()
    assert len(blocks) > 8


def test_the_table_of_laws_is_that_of_the_registry():
    page = (ROOT / "docs" / "reference" / "laws.md").read_text(encoding="utf-8")
    assert page == f"{format_table()}\n"


def test_the_guide_names_laws_that_exist():
    (named,) = re.findall(r"verified on:\n\n(.*?)\n\n`scaling fit", PAGE, re.S)
    names = re.findall(r"`(\w+)`", named)
    assert len(names) > 20
    assert set(names) <= set(LAWS)


@pytest.mark.parametrize("name", [*LAWS, *CURVE_LAWS])
def test_a_law_says_what_its_variables_and_parameters_are(name):
    law = find_law(name)
    text = explain_law(law)
    for variable in law.variables:
        assert f"  {variable} " in text
        assert describe_variable(law, variable) or variable == "loss"
    for parameter in law.params:
        assert f"  {parameter} " in text
    assert law.source
    assert law.verified
    assert law.verified in text


def test_a_law_of_ones_own_is_short():
    (block,) = re.findall(r"### A law of your own\n\n```python\n(.*?)```", PAGE, re.S)
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
