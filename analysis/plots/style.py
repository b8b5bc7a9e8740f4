"""What all figures share: colors, markers, ticks, number formats, the curve of a law,
and saving.

Figures are readable in print and by color-blind readers. A sequence of sizes or budgets
is colored by viridis without its pale end, whose lightness changes evenly, and every
series also has its own marker. Single colors are those of Okabe & Ito (2008).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.typing import LineStyleType
from numpy.typing import ArrayLike

from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.table.runs import Runs, load_runs

BLACK = "#1a1a1a"
GRAY = "#777777"
VERMILLION = "#D55E00"
BLUE = "#0072B2"
GREEN = "#009E73"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
TINT = "#f5ede4"
MARKERS = "osD^vP*X<>ph"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
SEQUENCE = LinearSegmentedColormap.from_list(
    "dark viridis", mpl.colormaps["viridis"](np.linspace(0, 0.82, 64))
)
LEVEL = 0.90
LOSS = "Loss (nats per token)"
VARIABLE = {
    "C": "Training compute C (FLOPs)",
    "N": "Model size N (parameters)",
    "D": "Training data D (tokens)",
}
WIDTH = 6.8  # inches: a text column, so that 9 pt stays 9 pt in print
LABEL_GAP = 3.0  # points between the labels of neighboring ticks
MAX_LEGEND = 10  # more sizes or budgets get a color bar instead of a key
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Number = float | int | np.number
Record = Mapping[Hashable, Any]  # a row, as `DataFrame.to_dict("records")` gives it
Color = str | tuple[float, float, float, float]


class LineStyle(TypedDict, total=False):
    """How markers or a line are drawn, by matplotlib's names of the properties."""

    alpha: float
    color: Color
    gid: str
    label: str
    linestyle: LineStyleType
    linewidth: float
    marker: str
    markersize: float
    mec: Color
    mew: float
    mfc: Color
    zorder: float


STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    # DejaVu Sans ships with matplotlib: text has the same width on every machine.
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: searchable, selectable, small
    "svg.hashsalt": "analysis",
    "pdf.fonttype": 42,
}


# Decorates the functions that draw: these settings hold inside them only.
use_style = mpl.rc_context(STYLE)


class HoverPoints(Line2D):
    """Markers with one text each, which the report shows when a reader points at one."""

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        titles: Sequence[str],
        **look: Unpack[LineStyle],
    ) -> None:
        look["linestyle"] = "none"
        super().__init__(np.asarray(x, float), np.asarray(y, float), **look)
        self.titles = [str(title) for title in titles]


class RoundLocator(ticker.Locator):
    """Ticks of a logarithmic axis at round numbers, about `most` of them, even where
    the axis spans less than a decade. Where their labels would touch, there are fewer,
    down to one.
    """

    def __init__(self, most: int = 7) -> None:
        self.most = most

    def __call__(self) -> np.ndarray:
        assert isinstance(self.axis, Axis)
        low, high = sorted(self.axis.get_view_interval())
        choices = list(list_round_numbers(low, high, self.most))
        most = choices[0]
        for ticks in (*choices, most[:: max(1, len(most) - 1)]):
            if len(ticks) > 1 and are_labels_apart(self.axis, ticks):
                return ticks
        return most[:1]

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        """The ticks where all labels have room."""
        low, high = sorted((vmin, vmax))
        return next(list_round_numbers(low, high, self.most))


def list_round_numbers(low: float, high: float, most: int) -> Iterator[np.ndarray]:
    """Round numbers from `low` to `high`, about `most` of them, and then ever fewer."""

    def select(ticks: np.ndarray) -> np.ndarray:
        return ticks[(ticks >= low) & (ticks <= high)]

    if high / low < 4:
        for count in range(most, 0, -1):
            linear = ticker.MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
            yield select(np.asarray(linear.tick_values(low, high)))
        return
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = select(np.sort(np.outer(10.0**decades, digits).ravel()))
        if len(ticks) <= most:
            yield ticks
    powers = select(10.0**decades)
    least = max(2, int(np.ceil(len(powers) / most)))
    for step in range(least, len(powers)):
        yield powers[::step]


def are_labels_apart(axis: Axis, ticks: np.ndarray) -> bool:
    """Whether the labels of some ticks leave a gap of `LABEL_GAP` between each other.

    Widths are those of the outlines of the letters, so that no renderer is needed.
    """
    axes = axis.axes
    is_x = axis is axes.xaxis
    pixels = axes.bbox.width if is_x else axes.bbox.height
    ends = np.asarray(axis.get_transform().transform(axis.get_view_interval()), float)
    places = np.asarray(axis.get_transform().transform(ticks), float)
    points = 72 * pixels / axes.figure.dpi
    centers = points * (places - ends[0]) / (ends[1] - ends[0])
    font = axis.get_major_ticks(1)[0].label1.get_fontproperties()
    sizes = []
    for text in axis.get_major_formatter().format_ticks(list(ticks)):
        width, height, _ = text_to_path.get_text_width_height_descent(text, font, False)
        sizes.append(width if is_x else height)
    half = np.array(sizes) / 2
    gaps = np.abs(np.diff(centers)) - half[1:] - half[:-1]
    return bool(np.all(gaps >= LABEL_GAP))


def format_count(value: Number) -> str:
    """A number of parameters or tokens: 12k, 1.25M, 70B, 15T."""
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if value < 0.9995 * 10**power:
            continue
        if value >= 9.995 * 10 ** (power + 2):
            break  # 1000T and more
        return f"{value / 10**power:.3g}{letter}"
    return f"{value:.3g}"


def format_flops(value: Number) -> str:
    """A number of FLOPs: 2.5 times a power of ten."""
    mantissa, power = f"{value:.2e}".split("e")
    ten = "10" + str(int(power)).translate(_SUPERSCRIPT)
    mantissa = mantissa.rstrip("0").rstrip(".")
    return ten if mantissa == "1" else f"{mantissa}{TIMES}{ten}"


def format_law(fit: Fit) -> str:
    """The law with its fitted numbers, such as "1.69 + 406 / N^0.339 + 411 / D^0.285"."""

    def write_number(match: re.Match[str]) -> str:
        value = fit.params[match.group()]
        if value >= 1e5:
            return format_flops(value)
        return f"{float(f'{value:.3g}'):.12g}"

    names = [rf"\b{re.escape(name)}\b" for name in fit.params]
    return re.sub("|".join(names), write_number, fit.law.formula)


def check_drawable(fit: Fit) -> None:
    """Check that the figures have axes for the law.

    Raises:
        ValueError: the law does not give the loss in N, D and C.
    """
    law = fit.law
    if law.target != "loss" or not set(law.variables) <= {"N", "D", "C"}:
        reads = f"{law.target} in {', '.join(law.variables)}"
        raise ValueError(
            f"law {law.name!r} gives {reads}, and the figure draws only the loss in "
            "N, D and C; choose another law"
        )


def format_signed(value: Number, form: str = "+g") -> str:
    """A signed number with a real minus sign."""
    return format(value, form).replace("-", MINUS) if abs(value) > 1e-12 else "0"


def make_figure(height: float, **options: Any) -> Figure:
    """An empty figure of the common width, to be filled inside `use_style`.

    It is made without pyplot, so that no global state holds it.

    Args:
        height: in inches.
    """
    return Figure(figsize=(WIDTH, height), layout="constrained", **options)


def _format_loss(value: Number) -> str:
    return f"{value:g}"


_FORMATS = {"flops": format_flops, "count": format_count, "loss": _format_loss}


def set_log_axis(ax: Axes, which: str, kind: str) -> None:
    """Make an axis logarithmic, with round and labeled ticks.

    Args:
        which: "x" or "y".
        kind: what the axis counts: "flops", "count" or "loss".
    """
    write = _FORMATS[kind]
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(RoundLocator(6 if kind == "flops" else 7))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_locator(ticker.LogLocator(subs=range(2, 10), numticks=99))
    axis.set_minor_formatter(ticker.NullFormatter())


def load_plotted_runs(runs: Runs | pd.DataFrame, *needed: str) -> Runs:
    """The runs as `Runs`.

    Raises:
        ValueError: the table lacks a needed column.
    """
    if not isinstance(runs, Runs):
        runs = load_runs(runs)
    runs.require(needed, "the figure")
    return runs


def label_x_axis(ax: Axes, runs: Runs, x: str) -> None:
    """Make the x axis one of N, D or C, with its unit.

    The label names the source column if that says which N it is, or if it is a formula.
    """
    set_log_axis(ax, "x", "flops" if x == "C" else "count")
    column = runs.columns.get(x, x)
    label = VARIABLE[x]
    if column != x and (x == "N" or "*" in column):
        label = f"{label.removesuffix(')')}, {column})"
    ax.set_xlabel(label, parse_math=False)


def add_color_bar(
    fig: Figure,
    axes: list[Axes],
    values: Sequence[float],
    label: str,
    kind: str,
    handles: list[Artist],
) -> None:
    """Add a color bar in place of a key for each size or budget.

    Args:
        fig: the figure.
        axes: those beside which the bar stands; the first gets the key of `handles`.
        values: the sizes or budgets.
        label: of the bar.
        kind: what the values count: "flops", "count" or "loss".
        handles: what else the key explains.
    """
    scale = ScalarMappable(LogNorm(min(values), max(values)), SEQUENCE)
    bar = fig.colorbar(scale, ax=axes, pad=0.02, aspect=30, label=label)
    set_log_axis(bar.ax, "y", kind)
    # Losses fall with scale, so the upper right corner is empty.
    axes[0].legend(handles=handles, loc="upper right")


def sample_colors(count: int) -> list[tuple[float, float, float, float]]:
    """Colors of an ordered series, dark to light."""
    return [SEQUENCE(t) for t in np.linspace(0.0, 1.0, max(count, 2))][:count]


def draw_points(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    titles: Sequence[str],
    **look: Unpack[LineStyle],
) -> HoverPoints:
    """Draw markers with a hover text each; a point that is not finite is left out."""
    x = np.asarray(x, float)
    y = np.asarray(y, float)
    is_shown = np.isfinite(x) & np.isfinite(y)
    kept = [title for title, shown in zip(titles, is_shown, strict=True) if shown]
    points = HoverPoints(x[is_shown], y[is_shown], kept, **look)
    ax.add_line(points)
    ax.autoscale_view()
    return points


def tint_beyond(ax: Axes, edge: float, right: float, label: str) -> Artist:
    """Tint the part of the axes between `edge`, the end of what was fitted, and
    `right`.
    """
    return ax.axvspan(
        edge * 1.03,
        right,
        color=TINT,
        zorder=0,
        linewidth=0,
        gid="beyond",
        label=label,
    )


def draw_background_runs(
    ax: Axes, rows: pd.DataFrame, x: str, label: str
) -> HoverPoints:
    """Draw runs that are shown for orientation only."""
    return draw_points(
        ax,
        rows[x],
        rows["loss"],
        describe_runs(rows),
        color="#a0a0a0",
        marker="o",
        markersize=3.5,
        mfc="white",
        zorder=1.5,
        label=label,
        gid="other-runs",
    )


def draw_law(
    ax: Axes,
    fit: Fit,
    boot: Bootstrap | None,
    at: Mapping[str, ArrayLike],
    across: np.ndarray,
    color: Color,
) -> None:
    """Draw the law, and with a bootstrap its 90 % interval.

    Args:
        ax: the axes to draw on.
        fit: the law.
        boot: gives the interval.
        at: variable of the law -> its value, a number or [n].
        across: [n] the x of these points.
        color: of the curve and, lighter, of the interval.
    """
    point = {
        name: np.broadcast_to(at[name], across.shape) for name in fit.law.variables
    }
    ax.plot(
        across, fit.predict(**point), color=color, linewidth=1.3, zorder=2, gid="law"
    )
    if boot is not None:
        low, high = boot.predict_interval(level=LEVEL, new_run=False, **point)
        ax.fill_between(
            across, low, high, color=color, alpha=0.2, linewidth=0, zorder=1, gid="band"
        )


def describe_runs(rows: pd.DataFrame) -> list[str]:
    """The hover text of each run: its id, N, D, C and losses."""
    writers = {"N": format_count, "D": format_count, "C": format_flops}
    titles = []
    for row in rows.to_dict("records"):
        lines = []
        if "run_id" in row:
            lines.append(f"run {row['run_id']}")
        elif "source_row" in row:
            lines.append(f"row {row['source_row']}")
        for name, write in writers.items():
            if name in row and np.isfinite(row[name]):
                lines.append(f"{name} {write(row[name])}")
        for name in ("loss", "measured", "predicted"):
            if name in row:
                lines.append(f"{name} {row[name]:.4f}")
        titles.append("\n".join(lines))
    return titles


def save_figure(fig: Figure, path: str | Path) -> Path:
    """Write a figure as .png (160 dots per inch), .svg or .pdf.

    The same figure gives the same bytes every time.

    Raises:
        ValueError: the path has another suffix.
    """
    path = Path(path)
    no_date = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    if path.suffix.lower() not in no_date:
        raise ValueError(
            f"cannot save a figure as {path.name!r}; use .png, .svg or .pdf"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        fig.savefig(path, dpi=160, metadata=no_date[path.suffix.lower()])
    return path
