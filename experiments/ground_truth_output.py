"""Tables and the figure of the ground-truth experiment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import style


def make_tables(found: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """What was fitted beside what is exact, one table for each part."""
    row_of = {
        "fitters": _make_fitter_row,
        "floors": _make_floor_row,
        "exponent": _make_exponent_row,
    }
    return {
        part: pd.DataFrame([row_of[part](row) for row in rows])
        for part, rows in found.items()
    }


def _make_fitter_row(row: dict[str, Any]) -> dict[str, Any]:
    def text(values: dict[str, float]) -> str:
        return ", ".join(f"{name} {values[name]:.4f}" for name in row["exact"])

    return {
        "law of the ideal learner": row["law"],
        "fitted": text(row["fitted"]),
        "exact": text(row["exact"]),
    }


def _make_floor_row(row: dict[str, Any]) -> dict[str, Any]:
    cells = {
        "source": row["name"],
        "width": row["width"],
        "depth": row["depth"],
        "tokens": row["tokens"][-1],
    }
    cells |= {
        "floor": row["floor"],
        "loss": row["loss"],
        "se": row["loss_se"],
        "loss - floor": row["loss"] - row["floor"],
    }
    return cells | {
        "loss - oracle": row["excess"][-1],
        "fitted E": _format_interval(row["law"], "E"),
    }


def _make_exponent_row(row: dict[str, Any]) -> dict[str, Any]:
    ratio = np.array(row["excess"]) / np.array(row["ideal"])
    cells = {
        "learner": row["name"],
        "exact": row["exponent"],
        "fitted": _format_interval(row["law"], "alpha"),
    }
    cells |= {
        "at the exact E": _format_interval(row["law_E_exact"], "alpha"),
        "floor": row["floor"],
    }
    return cells | {
        "fitted E": _format_interval(row["law"], "E"),
        "excess / ideal": f"{ratio[0]:.2f} .. {ratio[-1]:.2f}",
    }


def _format_interval(law: dict[str, Any], name: str) -> str:
    low, high = law["interval_90"][name]
    return f"{law[name]:.4f} [{low:.4f}, {high:.4f}]"


@style.use_style
def plot_ground_truth(found: dict[str, Any]) -> Figure:
    """Excess over the exact oracle: of the floors by tokens, of the facts by examples
    beside the ideal learner.
    """
    panels = {
        part: unit
        for part, unit in (("floors", "tokens"), ("exponent", "examples"))
        if part in found
    }
    fig = style.make_figure(3.8)
    for ax, (part, unit) in zip(
        fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        rows = found[part]
        for color, marker, row in zip(
            style.sample_colors(len(rows)), style.MARKERS, rows, strict=False
        ):
            ax.plot(
                row[unit], row["excess"], color=color, marker=marker, label=row["name"]
            )
        ax.set(xlabel=f"Training {unit}", ylabel="Loss above the oracle (nats)")
        style.set_log_axis(ax, "x", "count")
        style.set_log_axis(ax, "y", "loss")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return fig
