"""Tables with a known law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from analysis.laws.library import LAWS

TRUE = {"E": 1.7, "A": 400.0, "B": 1200.0, "alpha": 0.34, "beta": 0.37}
Sweep = Callable[..., pd.DataFrame]


@pytest.fixture(scope="session")
def sweep() -> Sweep:
    """Budgets x sizes of a known Chinchilla law, with log-normal noise of each row."""

    def make(
        noise: float = 0.0, budgets: int = 4, sizes: int = 7, seed: int = 0
    ) -> pd.DataFrame:
        C, N = np.meshgrid(
            1e18 * 4.0 ** np.arange(budgets),
            np.geomspace(2e7, 3e9, sizes),
            indexing="ij",
        )
        C, N = C.ravel(), N.ravel()
        D = C / (6 * N)
        loss = LAWS["chinchilla"].predict(TRUE, N=N, D=D)
        loss = loss * np.exp(
            noise * np.random.default_rng(seed).standard_normal(len(loss))
        )
        return pd.DataFrame({"N": N, "D": D, "C": C, "loss": loss, "budget": C})

    return make


@pytest.fixture(scope="session")
def true() -> dict[str, float]:
    return dict(TRUE)
