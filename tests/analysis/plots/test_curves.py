"""The figure of learning curves shows every run, its law and its residuals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.curves.features import compute_features
from analysis.curves.fit import fit_curves
from analysis.curves.schedule import Schedule
from analysis.curves.table import load_curves
from analysis.laws.curves import CURVE_LAWS
from analysis.plots.curves import plot_curves

TRUTH = {"L0": 3.24, "A": 0.55, "C": 0.64, "alpha": 0.81, "tau": 200.0}


def test_every_run_has_its_curve_points_and_residuals() -> None:
    law = CURVE_LAWS["annealing"]
    parts = []
    for name, end in (("low", 0.0), ("high", 2e-4)):
        schedule = Schedule.cosine(3e-4, 2000, 100, end)
        steps = np.arange(100, 2001, 50)
        features = compute_features(schedule, steps, law.warmup)
        loss = law.predict(TRUTH, **{v: features[v] for v in law.variables})
        rows = {"run": name, "step": steps, "lr": schedule.lr[steps], "loss": loss}
        parts.append(pd.DataFrame(rows))
    curves = load_curves(pd.concat(parts))
    fixed = {"alpha": TRUTH["alpha"], "tau": TRUTH["tau"]}
    low = load_curves(parts[0])
    fit = fit_curves(low, law, fixed=fixed)
    figure = plot_curves(fit, curves, fit.bootstrap(5))
    top, middle, bottom = figure.axes
    drawn = {line.get_gid() for line in top.lines}
    assert {"law-low", "loss-low", "law-high", "loss-high"} <= drawn
    assert {line.get_gid() for line in bottom.lines} >= {
        "residual-low",
        "residual-high",
    }
    assert len(middle.lines) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["high (not fitted)", "low", "90 % interval"]
    assert len(plot_curves(fit).axes) == 3


def test_long_names_of_runs_stay_on_the_page() -> None:
    law = CURVE_LAWS["annealing"]
    schedule = Schedule.cosine(3e-4, 2000, 100)
    steps = np.arange(100, 2001, 50)
    features = compute_features(schedule, steps, law.warmup)
    loss = law.predict(TRUTH, **{v: features[v] for v in law.variables})
    rows = pd.DataFrame({"step": steps, "lr": schedule.lr[steps], "loss": loss})
    names = [f"a_run_with_a_rather_long_name_{i}" for i in range(4)]
    curves = load_curves(pd.concat([rows.assign(run=name) for name in names]))
    fixed = {"alpha": TRUTH["alpha"], "tau": TRUTH["tau"]}
    figure = plot_curves(fit_curves(curves, law, fixed=fixed), curves)
    figure.draw_without_rendering()
    (key,) = figure.legends
    box = key.get_window_extent()
    assert len(key.get_texts()) == 4
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
