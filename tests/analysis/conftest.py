"""Tables with a known law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.certify import Certificate
from analysis.fitting.fit import Fit
from analysis.fitting.protocol import Protocol
from analysis.laws.library import LAWS
from analysis.table.runs import Runs, load_runs

TRUE = {"E": 1.7, "A": 400.0, "B": 1200.0, "alpha": 0.34, "beta": 0.37}
Sweep = Callable[..., pd.DataFrame]
MakeFit = Callable[..., Fit]
MakeBootstrap = Callable[[Fit], Bootstrap]


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


@pytest.fixture(scope="session")
def fit_at() -> MakeFit:
    """Makes a fit with given parameters as plain data: nothing is searched."""

    def make(
        runs: Runs | pd.DataFrame, params: dict[str, float], law: str = "chinchilla"
    ) -> Fit:
        found = LAWS[law]
        if not isinstance(runs, Runs):
            runs = load_runs(runs)
        data = {
            name: runs.table[name].to_numpy(float) for name in ("N", "D", "C", "loss")
        }
        points = {name: data[name] for name in found.variables}
        residuals = np.log(found.predict(params, **points) / data["loss"])
        protocol = Protocol(
            objective="huber",
            delta=1e-3,
            columns=runs.columns,
            source=runs.source,
            n_rows=len(runs),
            excluded=(),
            unit="row",
            fixed={},
            tied={},
        )
        certificate = Certificate(
            ok=True,
            gradient=1e-12,
            starts=40,
            agree=30,
            condition=50.0,
            not_identified=(),
            at_bound=(),
            weak=(),
            degrees_of_freedom=len(runs) - len(params),
        )
        return Fit(
            law=found,
            protocol=protocol,
            params=params,
            free=tuple(params),
            covariance=1e-4 * np.eye(len(params)),
            objective=1e-3,
            certificate=certificate,
            residuals=residuals,
            data=data,
        )

    return make


@pytest.fixture(scope="session")
def bootstrap_at() -> MakeBootstrap:
    """Makes 60 draws about a fit's parameters: nothing is searched."""

    def make(fit: Fit) -> Bootstrap:
        rng = np.random.default_rng(0)
        draws = {}
        for name, value in fit.params.items():
            draws[name] = value * np.exp(0.005 * rng.standard_normal(60))
        return Bootstrap(
            law=fit.law,
            draws=draws,
            unit="row",
            n_units=len(fit.residuals),
            seed=0,
            unconverged=0,
            scatter=0.004,
            degrees_of_freedom=fit.certificate.degrees_of_freedom,
        )

    return make
